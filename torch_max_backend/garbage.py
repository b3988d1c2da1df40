"""Python's garbage collector during work that allocates much and frees nothing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No collection inside: each goes through all objects of torch, 0.2 s at a time.

    What was made inside is in the oldest generation afterwards, as if it had survived collections;
    the next young one would go through all of it, and soon a full one through everything else.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # unfreeze would give back what a server froze
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()
