"""Python's garbage collector during work that allocates much and frees nothing."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType


@contextmanager
def collector_paused() -> Iterator[None]:
    """No collection inside: each goes through all objects of torch, 0.2 s at a time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def make_old() -> None:
    """All objects to the oldest generation, as if they had survived collections.

    For after imports, whose objects stay: the next collection would go through all of them. It
    also puts off the next full one: often repeated, garbage would never be found.
    """
    if gc.get_freeze_count() == 0:  # unfreeze would give back what a server froze
        gc.freeze()
        gc.unfreeze()


def imported(*modules: str) -> ModuleType:
    """Imports modules without a collection, and makes what they brought old; returns the last."""
    are_new = not sys.modules.keys() >= set(modules)
    with collector_paused():
        found = [import_module(name) for name in modules]  # waits for another thread's import
        if are_new:
            make_old()
    return found[-1]


class FirstTrace:
    """No collection while Dynamo traces for the first time; `start` and `end` are its callbacks.

    A start from the compile cache would spend 0.3 s of 3 in a full collection there. What Dynamo's
    backend does, whichever it is, falls into the trace. Later traces collect: a process that
    compiles all day has garbage to find.
    """

    def __init__(self) -> None:
        self._has_come = False
        self._has_paused = False

    def start(self, _: object = None) -> None:
        if not self._has_come:
            self._has_come = True
            self._has_paused = gc.isenabled()
            gc.disable()

    def end(self, _: object = None) -> None:
        if self._has_paused:
            self._has_paused = False
            gc.enable()


first_trace = FirstTrace()
