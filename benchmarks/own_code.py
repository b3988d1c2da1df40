"""Functions that Dynamo tells apart: it keeps what it compiled per code object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; what was compiled for another one costs it no guards."""
    scope: dict[str, Any] = {"function": function}
    exec("def call(*args):\n    return function(*args)", scope)
    return scope["call"]
