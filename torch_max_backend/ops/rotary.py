"""Rotary position embedding (Su et al., 2021) where no attention kernel applies it."""

from __future__ import annotations

from max.dtype import DType
from max.graph import TensorValue, ops

from torch_max_backend.ops.rounding import cast
from torch_max_backend.ops.shape import join, slice_axis


def rotary_embedding(x: TensorValue, sin: TensorValue, cos: TensorValue, first: int) -> TensorValue:
    """(B, H, L, E) with its rows from ``first`` on rotated by angles of (..., L - first, E), in
    float32 and rounded once."""
    length, width = x.shape[2], int(x.shape[3])
    rows = ops.cast(slice_axis(x, 2, first, None, 1, length - first), DType.float32)
    sin, cos = (ops.cast(table, DType.float32) for table in (sin, cos))
    a = slice_axis(rows, 3, 0, width // 2, 1, width // 2)
    b = slice_axis(rows, 3, width // 2, width, 1, width // 2)
    rotated = cast(rows * cos + join([-b, a], 3) * sin, x.dtype)
    return join([slice_axis(x, 2, 0, first, 1, first), rotated], 2) if first else rotated
