"""Constants that match an operand."""

from __future__ import annotations

from max.graph import TensorValue, ops


def constant(value: float, x: TensorValue) -> TensorValue:
    """A 0-d constant of x's dtype on x's device."""
    return ops.constant(value if x.dtype.is_float() else int(value), x.dtype, device=x.device)
