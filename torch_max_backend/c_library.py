"""Functions of the C libraries that the process has loaded."""

from __future__ import annotations

import ctypes
from typing import Any


def c_function(name: str) -> Any:
    """The function, or None where no library has it."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no CDLL(None)
        return None
