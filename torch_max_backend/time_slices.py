"""Longer time slices for MAX's workers, so that the thread that calls gets its result at once.

After a run each worker looks for work in a loop, on a processor of its own, and the thread that
waits for the result wakes up beside one. Linux's scheduler (EEVDF) often lets the worker go on, for
3 ms until it sleeps, unless its slice is longer than that of the thread that wakes up (Linux 6.12
and later).
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch_max_backend.c_library import c_function

SLICE = 20_000_000
"""Nanoseconds; usual are 1 to 4 ms. From 10 ms on the thread hardly waits."""
_WORKER_NAME = "\N{FIRE} Thread".encode()
_SYSTEM_CALLS = {"x86_64": (315, 314), "aarch64": (275, 274)}
"""Numbers of sched_getattr and sched_setattr, for which few C libraries have functions."""


class _Attributes(ctypes.Structure):
    """``struct sched_attr`` of sched_setattr(2), its first version."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    ]


@contextmanager
def long_time_slices() -> Iterator[None]:
    """Of the workers that MAX has started or starts meanwhile, which inherit them from this thread.

    Their shares of the processors stay as they are. Does nothing but on Linux, and nothing that
    matters before Linux 6.12.
    """
    for worker in max_workers():
        set_time_slice(worker, SLICE)
    caller = threading.get_native_id()
    own = time_slice(caller)
    set_time_slice(caller, SLICE)
    try:
        yield
    finally:
        set_time_slice(caller, own)


def max_workers() -> list[int]:
    """Linux's ids of MAX's workers, by the name that each takes soon after its start; none on other
    systems."""
    found = []
    for thread in Path("/proc/self/task").glob("*"):
        try:
            if (thread / "comm").read_bytes().startswith(_WORKER_NAME):
                found.append(int(thread.name))
        except OSError:  # it has ended
            continue
    return found


def time_slice(thread: int) -> int:
    """In nanoseconds; 0 where the system does not say."""
    attributes = _attributes(thread)
    return attributes.runtime if attributes else 0


def set_time_slice(thread: int, nanoseconds: int) -> None:
    """Of a thread of the usual policy; its priority stays. Does nothing where Linux refuses."""
    attributes = _attributes(thread)
    if attributes and attributes.policy == os.SCHED_OTHER:
        attributes.runtime = nanoseconds
        _, setter = _SYSTEM_CALLS[platform.machine()]
        c_function("syscall")(setter, thread, ctypes.byref(attributes), 0)


def _attributes(thread: int) -> _Attributes | None:
    if sys.platform != "linux" or platform.machine() not in _SYSTEM_CALLS:
        return None
    attributes = _Attributes()
    getter, _ = _SYSTEM_CALLS[platform.machine()]
    size = ctypes.sizeof(attributes)
    refused = c_function("syscall")(getter, thread, ctypes.byref(attributes), size, 0)
    return None if refused else attributes
