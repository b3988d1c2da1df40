"""Reductions over one axis that is kept with size 1, and what is built from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops

from torch_max_backend.dims import static
from torch_max_backend.ops.comparison import nonzero_bool
from torch_max_backend.ops.constants import constant
from torch_max_backend.ops.shape import drop_axes, filled, normalize_dim, reshape
from torch_max_backend.ops.transcendental import exp, log, power_scalar
from torch_max_backend.scalars import scalar


def _is_empty(x: TensorValue) -> bool:
    return any(static(size) == 0 for size in x.shape)


def _filled(x: TensorValue, axis: int, value: float) -> TensorValue:
    shape = [1 if i == axis else d for i, d in enumerate(x.shape)]
    return filled(value, shape, x.dtype, x.device)


def sum_axis(x: TensorValue, axis: int) -> TensorValue:
    """Sum; 0 over nothing."""
    return _filled(x, axis, 0) if _is_empty(x) else ops.sum(x, axis)


def mean_axis(x: TensorValue, axis: int) -> TensorValue:
    """Mean; NaN over nothing."""
    return _filled(x, axis, float("nan")) if _is_empty(x) else ops.mean(x, axis)


def running_sum(x: TensorValue, axis: int) -> TensorValue:
    """Sums of the elements so far; MAX has them on the host alone."""
    if x.device.is_cpu():
        return ops.cumsum(x, axis)
    return ops.cumsum(x.to(DeviceRef.CPU()), axis).to(x.device)


def prod_axis(x: TensorValue, axis: int) -> TensorValue:
    """Product; 1 over nothing."""
    return _filled(x, axis, 1) if _is_empty(x) else ops.prod(x, axis)


def max_axis(x: TensorValue, axis: int) -> TensorValue:
    """Maximum; NaN wins (MAX ignores it)."""
    return _extreme(x, axis, ops.max, -math.inf)


def min_axis(x: TensorValue, axis: int) -> TensorValue:
    """Minimum; NaN wins."""
    return _extreme(x, axis, ops.min, math.inf)


def _extreme(x: TensorValue, axis: int, reduce, start: float) -> TensorValue:
    """MAX's reductions ignore NaN and start from the last finite number instead of infinity."""
    if x.dtype == DType.bool:
        return ops.cast(reduce(ops.cast(x, DType.int32), axis=axis), DType.bool)
    found = reduce(x, axis=axis)
    if not x.dtype.is_float():
        return found
    beyond = ops.logical_not(ops.equal(x, constant(start, x)))
    seen = ops.cast(ops.is_nan(x), DType.float32) + ops.cast(beyond, DType.float32)
    most = ops.max(seen, axis=axis)  # 0: all are the start value, 2: there is a NaN
    found = ops.where(most < 0.5, constant(start, x), found)
    return ops.where(most > 1.5, constant(math.nan, x), found)


def any_axis(x: TensorValue, axis: int) -> TensorValue:
    """Whether one is True."""
    if _is_empty(x):
        return _filled(x, axis, 0)
    return ops.max(ops.cast(x, DType.int32), axis=axis) > 0


def all_axis(x: TensorValue, axis: int) -> TensorValue:
    """Whether all are True."""
    if _is_empty(x):
        return _filled(x, axis, 1)
    return ops.min(ops.cast(x, DType.int32), axis=axis) > 0


def arg_extreme(x: TensorValue, dim: int | None, keepdim: bool, *, largest: bool) -> TensorValue:
    """int64 index of the first maximum or minimum; the first NaN wins."""
    if not x.rank:
        return scalar(0, DType.int64, x.device)
    rank = x.rank
    if dim is None:
        x = reshape(x, [-1])
    axis = normalize_dim(dim or 0, x.rank)
    if x.dtype == DType.bool:
        x = ops.cast(x, DType.int32)
    find = ops.argmax if largest else ops.argmin
    index = ops.cast(find(x, axis), DType.int64)
    if x.dtype.is_float():
        nan = ops.cast(ops.is_nan(x), DType.int32)
        first = ops.cast(ops.argmax(nan, axis), DType.int64)
        index = ops.where(ops.max(nan, axis=axis) > 0, first, index)
    if dim is None:
        return reshape(index, [1] * rank if keepdim else [])
    return index if keepdim else drop_axes(index, [axis])


def vector_norm(x: TensorValue, order: float, axes: Sequence[int]) -> TensorValue:
    """(sum |x|^order)^(1 / order) over the axes, which are kept; the limits for 0 and +-inf."""
    size = ops.abs(x)
    if order == 0:
        size = ops.cast(nonzero_bool(x), x.dtype)
    if abs(order) == math.inf:
        for axis in axes:
            size = max_axis(size, axis) if order > 0 else min_axis(size, axis)
        return size
    powers = size if order in (0, 1) else power_scalar(size, order)
    for axis in axes:
        powers = sum_axis(powers, axis)
    return powers if order in (0, 1) else power_scalar(powers, 1 / order)


def logsumexp(x: TensorValue, axis: int) -> TensorValue:
    """log(sum(exp(x))) shifted by the maximum; infinite maxima stay finite shifts."""
    peak = max_axis(x, axis)
    shift = ops.where(ops.is_inf(peak), constant(0, peak), peak)
    return log(ops.sum(exp(x - shift), axis)) + shift
