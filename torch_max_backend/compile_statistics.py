"""What the compilation of this process came to, and the names of its graphs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass
class CompileStatistics:
    """Counts since the start of the process; see :data:`statistics`."""

    compiled: int = 0
    """graphs compiled by MAX"""
    cached: int = 0
    """graphs read from the disk cache"""
    seconds: float = 0.0
    """time spent in MAX's compiler"""


statistics = CompileStatistics()
_numbers = itertools.count()


def next_name(kind: str) -> str:
    """What logs and profiles call the next graph, such as "inference0"."""
    return f"{kind}{next(_numbers)}"
