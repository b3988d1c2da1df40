"""Python's garbage collector during work that allocates much and frees nothing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
