"""Normalisations over trailing axes; half precision is computed in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from max.dtype import DType
from max.graph import Dim, TensorValue, ops

from torch_max_backend.dims import IntLike, dim_value, static
from torch_max_backend.ops import arithmetic, transcendental
from torch_max_backend.ops.comparison import is_finite
from torch_max_backend.ops.constants import constant
from torch_max_backend.ops.reduction import max_axis
from torch_max_backend.ops.shape import reshape
from torch_max_backend.promotion import accumulation_dtype


def _flatten_trailing(x: TensorValue, normalized_shape: Sequence[IntLike]) -> TensorValue:
    """(..., *normalized_shape) -> (..., n), in the accumulation dtype."""
    lead = list(x.shape)[: x.rank - len(normalized_shape)]
    wide = accumulation_dtype(x.dtype)
    x = x if x.dtype == wide else ops.cast(x, wide)
    if len(normalized_shape) == 1:
        return x
    return reshape(x, [*lead, math.prod([static(s) or 0 for s in normalized_shape])])


def _affine(value: TensorValue | None, x: TensorValue, fill: float) -> TensorValue:
    size = x.shape[-1]
    if value is None:
        one = ops.constant(fill, x.dtype, device=x.device)
        return ops.broadcast_to(one, [size])
    value = reshape(value, [size])
    return value if value.dtype == x.dtype else ops.cast(value, x.dtype)


def layer_norm(
    x: TensorValue,
    normalized_shape: Sequence[IntLike],
    weight: TensorValue | None,
    bias: TensorValue | None,
    eps: float,
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """(out, mean, rstd) of layer normalisation (Ba et al., 2016), statistics in float32 for half.

    The statistics are separate graph values: MAX drops them where nothing uses them.
    """
    flat = _flatten_trailing(x, normalized_shape)
    gain, shift = _affine(weight, flat, 1.0), _affine(bias, flat, 0.0)
    mean = ops.mean(flat, -1)
    centred = flat - mean
    rstd = ops.rsqrt(ops.mean(centred * centred, -1) + eps)
    if flat.dtype == DType.float64 or eps <= 0:  # MAX's kernel takes a positive eps in float32
        out = centred * rstd * gain + shift
    else:
        out = ops.layer_norm(flat, gain, shift, eps)
    return _restore(out, x), *_statistics(x, normalized_shape, mean, rstd)


def rms_norm(
    x: TensorValue, normalized_shape: Sequence[IntLike], weight: TensorValue | None, eps: float
) -> TensorValue:
    """Root mean square normalisation (Zhang and Sennrich, 2019), in float32 for half."""
    flat = _flatten_trailing(x, normalized_shape)
    gain = _affine(weight, flat, 1.0)
    if flat.dtype == DType.float64 or eps <= 0:  # MAX's kernel takes a positive eps in float32
        out = flat * ops.rsqrt(ops.mean(flat * flat, -1) + eps) * gain
    else:
        out = ops.rms_norm(flat, gain, eps)
    return reshape(out, list(x.shape))


def _restore(out: TensorValue, x: TensorValue) -> TensorValue:
    out = reshape(out, list(x.shape))
    return out if out.dtype == x.dtype else ops.cast(out, x.dtype)


def _statistics(
    x: TensorValue, normalized_shape: Sequence[IntLike], *values: TensorValue
) -> list[TensorValue]:
    lead = list(x.shape)[: x.rank - len(normalized_shape)]
    return [reshape(v, [*lead, *([1] * len(normalized_shape))]) for v in values]


def group_norm(
    x: TensorValue,
    weight: TensorValue | None,
    bias: TensorValue | None,
    groups: int,
    eps: float,
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """(out, mean, rstd) of group normalisation (Wu and He, 2018) over (N, C, *)."""
    batch, channels = x.shape[0], x.shape[1]
    wide = accumulation_dtype(x.dtype)
    elements = Dim(1)
    for size in list(x.shape)[1:]:
        elements = elements * size
    grouped = reshape(ops.cast(x, wide), [batch, groups, elements // groups])
    mean = ops.mean(grouped, -1)
    centred = grouped - mean
    rstd = ops.rsqrt(ops.mean(centred * centred, -1) + eps)
    out = reshape(centred * rstd, list(x.shape))
    per_channel = [1, channels] + [1] * (x.rank - 2)
    if weight is not None:
        out = out * ops.cast(reshape(weight, per_channel), wide)
    if bias is not None:
        out = out + ops.cast(reshape(bias, per_channel), wide)
    statistics = [reshape(value, [batch, groups]) for value in (mean, rstd)]
    return ops.cast(out, x.dtype), *[ops.cast(value, x.dtype) for value in statistics]


def batch_norm(
    x: TensorValue, weight: TensorValue | None, bias: TensorValue | None, eps: float
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """(out, mean, rstd) of batch normalisation with the statistics of this batch."""
    wide = arithmetic.cast_value(x, accumulation_dtype(x.dtype))
    axes = [axis for axis in range(x.rank) if axis != 1]
    spread, mean = variance(wide, axes, 0.0)
    rstd = ops.rsqrt(spread + eps)
    out = (wide - mean) * rstd
    for value, combine in ((weight, ops.mul), (bias, ops.add)):
        if value is not None:
            column = reshape(value, [1, x.shape[1]] + [1] * (x.rank - 2))
            out = combine(out, arithmetic.cast_value(column, wide.dtype))
    statistics = [reshape(value, [x.shape[1]]) for value in (mean, rstd)]
    return arithmetic.cast_value(out, x.dtype), statistics[0], statistics[1]


def batch_norm_inference(
    x: TensorValue,
    weight: TensorValue | None,
    bias: TensorValue | None,
    mean: TensorValue,
    variance: TensorValue,
    eps: float,
) -> TensorValue:
    """Batch normalisation (Ioffe and Szegedy, 2015) with given statistics over axis 1."""
    wide = accumulation_dtype(x.dtype)
    per_channel = [1, x.shape[1]] + [1] * (x.rank - 2)

    def column(value: TensorValue) -> TensorValue:
        return ops.cast(reshape(value, per_channel), wide)

    out = (ops.cast(x, wide) - column(mean)) * ops.rsqrt(column(variance) + eps)
    if weight is not None:
        out = out * column(weight)
    if bias is not None:
        out = out + column(bias)
    return ops.cast(out, x.dtype)


def softmax(x: TensorValue, axis: int, *, log: bool = False) -> TensorValue:
    """Softmax or its logarithm along an axis, in the accumulation dtype."""
    if not x.rank:
        return ops.where(is_finite(x), constant(0.0 if log else 1.0, x), constant(math.nan, x))
    wide = accumulation_dtype(x.dtype)
    axis = axis % x.rank
    if wide == DType.float64:  # MAX's exp has 12 digits there
        shifted = x - ops.max(x, axis=axis)
        powers = transcendental.exp(shifted)
        total = ops.sum(powers, axis)
        return shifted - transcendental.log(total) if log else powers / total
    x = x if x.dtype == wide else ops.cast(x, wide)
    out = ops.logsoftmax(x, axis) if log else ops.softmax(x, axis)
    # MAX's kernels leave NaN out; the largest element is finite wherever the result is
    return ops.where(is_finite(max_axis(x, axis)), out, constant(math.nan, out))


def variance(
    x: TensorValue, dims: Sequence[int], correction: float
) -> tuple[TensorValue, TensorValue]:
    """(variance, mean) with the axes kept; two passes, as torch's result is to its rounding."""
    if not dims:
        alone = constant(0.0 if correction < 1 else math.nan, x)
        return ops.where(is_finite(x), alone, constant(math.nan, x)), x
    mean = x
    for dim in dims:
        mean = ops.mean(mean, dim)
    squares = (x - mean) * (x - mean)
    count: TensorValue | float = 1.0
    for dim in dims:
        squares = ops.sum(squares, dim)
        n = static(x.shape[dim])
        if n is not None and not isinstance(count, TensorValue):
            count = count * n
        else:
            count = dim_value(x.shape[dim], x.dtype).to(x.device) * count
    if isinstance(count, TensorValue):
        zero = ops.constant(0.0, x.dtype, device=x.device)
        return squares / ops.max(count - correction, zero), mean
    degrees = max(count - correction, 0.0)
    divisor = ops.constant(np.float64(degrees).item(), x.dtype, device=x.device)
    return squares / divisor, mean
