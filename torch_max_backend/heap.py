"""Memory of the C heap that is free."""

from __future__ import annotations

import ctypes


def return_free_memory() -> None:
    """Has the system get back what the process freed and malloc keeps for later: a compile leaves
    hundreds of MiB. Only glibc can be told; with other C libraries nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
