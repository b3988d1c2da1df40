"""The collector is paused while compiling and comes back as it was; what is imported is old."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

import torch_max_backend
from torch_max_backend import garbage, max_backend
from torch_max_backend.garbage import collector_paused, make_old


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.unfreeze()
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


def test_old_objects_are_still_collected():
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    cycle = Cycle()
    assert not any(found is cycle for found in gc.get_objects(2))
    make_old()
    assert any(found is cycle for found in gc.get_objects(2))
    gone = weakref.ref(cycle)
    del cycle
    gc.collect()
    assert gone() is None


def test_what_a_server_froze_stays_frozen():
    gc.freeze()
    frozen = gc.get_freeze_count()
    make_old()
    assert gc.get_freeze_count() == pytest.approx(frozen, abs=100)


def test_a_name_of_the_package_makes_old_once(monkeypatch):
    """Were it at every use, a loop would keep the collector from ever finding garbage."""
    calls: list[None] = []
    monkeypatch.setattr(garbage, "make_old", lambda: calls.append(None))
    monkeypatch.delitem(vars(torch_max_backend), "MaxOptions", raising=False)
    first = torch_max_backend.MaxOptions
    assert torch_max_backend.MaxOptions is first
    assert len(calls) == 1


def test_a_compile_that_fails_brings_it_back():
    def nothing_lowers_this(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x)

    with pytest.raises(Exception, match="svd"):
        torch.compile(nothing_lowers_this, backend=max_backend, fullgraph=True)(torch.randn(3, 3))
    assert gc.isenabled()
