"""The collector is paused while starting and compiling; what is imported is old afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch

import torch_max_backend
from torch_max_backend import garbage, max_backend
from torch_max_backend.garbage import collector_paused, first_trace, make_old


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


def test_an_import_makes_old_once(monkeypatch, tmp_path):
    """Were it at every use, a loop would keep the collector from ever finding garbage."""
    calls: list[None] = []
    monkeypatch.setattr(garbage, "make_old", lambda: calls.append(None))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_once.py").write_text("import gc\nrunning = gc.isenabled()\n")
    try:
        module = garbage.imported("math", "imported_once")
        assert module.__name__ == "imported_once" and not module.running
        assert garbage.imported("math", "imported_once") is module
    finally:
        sys.modules.pop("imported_once", None)
    assert len(calls) == 1 and gc.isenabled()
    torch_max_backend.MaxOptions, max_backend  # noqa: B018
    assert len(calls) == 1


FIRST_START = """
import gc, sys, torch
collections = []
gc.callbacks.append(lambda phase, info: collections.append(info["generation"]))
IMPORT
assert "torch._dynamo" in sys.modules and gc.isenabled()
assert 2 not in collections, collections

enabled = []
@torch.compiler.assume_constant_result
def observe():
    enabled.append(gc.isenabled())
    return 2.0

@torch.compile(backend="max", fullgraph=True)
def nothing_lowers_this(x):
    return torch.linalg.svdvals(x) * observe()

for _ in range(2):
    try:
        nothing_lowers_this(torch.randn(3, 3))
    except Exception as error:
        assert "svd" in str(error), error
    else:
        raise AssertionError("it was compiled")
    assert gc.isenabled()
assert enabled == [False, True], enabled
"""


@pytest.mark.parametrize("statement", ["import vit", "from torch_max_backend import max_backend"])
def test_a_start_is_without_a_full_collection(statement):
    """In the import of Dynamo and its first trace; a trace that fails brings the collector back."""
    command = [sys.executable, "-c", FIRST_START.replace("IMPORT", statement)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_compile_that_fails_brings_it_back():
    def nothing_lowers_this(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x)

    with pytest.raises(Exception, match="svd"):
        torch.compile(nothing_lowers_this, backend=max_backend, fullgraph=True)(torch.randn(3, 3))
    assert gc.isenabled()


def test_the_first_trace_leaves_a_collector_that_was_off(monkeypatch):
    monkeypatch.setattr(first_trace, "_has_come", False)
    gc.disable()
    first_trace.start()
    first_trace.end()
    assert not gc.isenabled()
