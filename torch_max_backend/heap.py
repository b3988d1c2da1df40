"""Memory of the C heap that is free."""

from __future__ import annotations

import ctypes

from torch_max_backend.c_library import c_function


def return_free_memory() -> None:
    """Has the system get back what the process freed and malloc keeps for later: a compile leaves
    hundreds of MiB. Only glibc can be told; with other C libraries nothing happens."""
    trim = c_function("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))
