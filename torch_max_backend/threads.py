"""That the threads of MAX and of PyTorch make way for each other.

Either library has as many workers as there are processors, and a worker looks for work in a loop
before it sleeps. What the other library does meanwhile runs at half its speed.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

from torch_max_backend.c_library import c_function

_BUSY_WAIT = ("MODULAR_THREAD_BUSY_WAIT_US", "MODULAR_RUNTIME_THREAD_BUSY_WAIT_TIME_US")
"""How long MAX's workers look for work: as its devices read it, and as its sessions do. MAX aborts
the process where the two differ."""
_SHORT = "70"
"""3 to 30 ms, measured; MAX's own, 200, is 10 to 150 ms, whatever the unit in the names."""
_SOFT = 1
"""``omp_pause_soft`` of OpenMP 5.0, section 3.2.44: the next parallel region goes on as before."""


def shorten_busy_wait() -> None:
    """Sets how long MAX's workers look for work, unless the user did, for this process.

    To be called before MAX is imported; does nothing after, since its workers may have started.
    """
    if "max._core" not in sys.modules:
        chosen = [os.environ[name] for name in _BUSY_WAIT if name in os.environ]
        for name in _BUSY_WAIT:
            os.environ.setdefault(name, chosen[0] if chosen else _SHORT)


def end_openmp_threads() -> None:
    """Ends the OpenMP workers of this thread, which PyTorch computes with; it starts them anew.

    0.5 us where there are none. Where there are, ending and starting them takes about 1 ms.
    """
    pause = _openmp_pause()
    if pause is not None:
        pause(_SOFT)


@functools.cache  # at every run, hence not looked up anew
def _openmp_pause() -> Callable[[int], int] | None:
    """Of the OpenMP library that PyTorch has loaded; None where it has none, or an old one."""
    return c_function("omp_pause_resource_all")
