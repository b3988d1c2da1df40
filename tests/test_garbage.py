"""The collector is paused while compiling and comes back as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from torch_max_backend import max_backend
from torch_max_backend.garbage import collector_paused


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_paused_inside_only():
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_brings_it_back():
    with pytest.raises(ValueError, match="inside"), collector_paused():
        raise ValueError("inside")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_a_compile_that_fails_brings_it_back():
    def nothing_lowers_this(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x)

    with pytest.raises(Exception, match="svd"):
        torch.compile(nothing_lowers_this, backend=max_backend, fullgraph=True)(torch.randn(3, 3))
    assert gc.isenabled()
