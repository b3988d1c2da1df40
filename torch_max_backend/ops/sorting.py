"""Sorting and selection."""

from __future__ import annotations

from max.dtype import DType
from max.graph import TensorValue, ops

from torch_max_backend.ops.shape import permute


def top_k(x: TensorValue, k: int, dim: int, largest: bool) -> tuple[TensorValue, TensorValue]:
    """The k largest or smallest along an axis, in order, and their int64 indices."""
    if not x.rank:
        return x, ops.constant(0, DType.int64, device=x.device)
    axis = dim % x.rank
    order = [i for i in range(x.rank) if i != axis] + [axis]
    inverse = sorted(range(x.rank), key=order.__getitem__)
    run = ops.top_k if largest else ops.bottom_k
    values, indices = run(permute(x, order), k, axis=-1)
    return permute(values, inverse), permute(ops.cast(indices, DType.int64), inverse)


def sort(x: TensorValue, dim: int, descending: bool) -> tuple[TensorValue, TensorValue]:
    """All values along an axis of static size in order, and their int64 indices."""
    size = int(x.shape[dim % x.rank]) if x.rank else 1
    return top_k(x, size, dim, largest=descending)
