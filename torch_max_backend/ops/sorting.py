"""Sorting and selection: stable, NaN the largest of all values."""

from __future__ import annotations

import math

from max.dtype import DType
from max.graph import DeviceRef, TensorType, TensorValue, ops

from torch_max_backend.dims import IntLike, dim_value
from torch_max_backend.ops.indexing import gather
from torch_max_backend.ops.shape import permute, slice_axis
from torch_max_backend.promotion import as_tensor


def top_k(x: TensorValue, k: IntLike, dim: int, largest: bool) -> tuple[TensorValue, TensorValue]:
    """The k largest or smallest along an axis, in order, and their int64 indices."""
    if not x.rank:
        return x, ops.constant(0, DType.int64, device=x.device)
    axis = dim % x.rank
    order = [i for i in range(x.rank) if i != axis] + [axis]
    inverse = sorted(range(x.rank), key=order.__getitem__)
    values, indices = _sort_last_axis(permute(x, order), largest)
    last = x.rank - 1
    values, indices = (slice_axis(out, last, 0, k, 1, k) for out in (values, indices))
    return permute(values, inverse), permute(indices, inverse)


def sort(x: TensorValue, dim: int, descending: bool) -> tuple[TensorValue, TensorValue]:
    """All values along an axis in order, and their int64 indices."""
    return top_k(x, x.shape[dim % x.rank] if x.rank else 1, dim, largest=descending)


def _sort_last_axis(x: TensorValue, descending: bool) -> tuple[TensorValue, TensorValue]:
    if not x.dtype.is_float():
        return _stable_sort(x, descending)
    # MAX compares NaN as neither: sort as if infinite, then order these by being NaN
    last = x.rank - 1
    missing = ops.is_nan(x)
    _, first = _stable_sort(
        ops.where(missing, as_tensor(math.inf, x.dtype, x.device), x), descending
    )
    flags = gather(ops.cast(missing, DType.int32), last, first)
    _, second = _stable_sort(flags, descending)
    indices = gather(first, last, second)
    return gather(x, last, indices), indices


def _stable_sort(x: TensorValue, descending: bool) -> tuple[TensorValue, TensorValue]:
    """MAX's kernel by its registered name: ``ops.top_k`` takes no symbolic k."""
    host = DeviceRef.CPU()
    values, indices = ops.custom(
        "mo.top_k" if descending else "mo.bottom_k",
        device=x.device,
        values=[
            x,
            dim_value(x.shape[-1]),
            ops.constant(-1, DType.int64, device=host),
            ops.constant(True, DType.bool, device=host),
        ],
        out_types=[x.type, TensorType(DType.int64, x.shape, x.device)],
    )
    return values.tensor, indices.tensor
