"""Normalisations over trailing axes; half precision is computed in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

from max.dtype import DType
from max.graph import DeviceRef, Dim, TensorValue, ops

from torch_max_backend.dims import IntLike, dim_value, static
from torch_max_backend.ops import arithmetic, transcendental
from torch_max_backend.ops.comparison import is_finite
from torch_max_backend.ops.constants import constant
from torch_max_backend.ops.reduction import max_axis
from torch_max_backend.ops.rounding import cast
from torch_max_backend.ops.shape import broadcast, element_count, reshape
from torch_max_backend.promotion import accumulation_dtype


def as_rows(x: TensorValue, normalized_shape: Sequence[IntLike]) -> TensorValue:
    """(..., *normalized_shape) -> (rows, n)."""
    lead = list(x.shape)[: x.rank - len(normalized_shape)]
    return reshape(x, [element_count(lead), element_count(normalized_shape)])


def factors(value: TensorValue | None, x: TensorValue, fill: float) -> TensorValue:
    """A number per column; where there is none, one for all."""
    if value is None:
        return ops.constant([fill], x.dtype, device=x.device)
    return reshape(value, [-1])


def epsilon(eps: float) -> TensorValue:
    """As our kernels take it."""
    return ops.constant(eps, DType.float64, device=DeviceRef.CPU())


def _kernel(name: str, x: TensorValue, factors: Sequence[TensorValue], eps: float) -> TensorValue:
    """Ours, on CPU: where half precision follows it, MAX 26.6 fuses that into its own and gives
    wrong numbers."""
    values = [x, *factors, epsilon(eps)]
    return ops.custom(f"torch_max_backend.{name}", x.device, values, [x.type])[0].tensor


def layer_norm(
    x: TensorValue,
    normalized_shape: Sequence[IntLike],
    weight: TensorValue | None,
    bias: TensorValue | None,
    eps: float,
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """(out, mean, rstd) of layer normalisation (Ba et al., 2016), computed in float32 for half.

    The statistics are separate graph values: MAX drops them where nothing uses them.
    """
    rows = as_rows(x, normalized_shape)
    gain, shift = factors(weight, x, 1.0), factors(bias, x, 0.0)
    wide = ops.cast(rows, accumulation_dtype(x.dtype))
    mean = ops.mean(wide, -1)
    centred = wide - mean
    rstd = ops.rsqrt(ops.mean(centred * centred, -1) + eps)
    if x.device.is_cpu():
        out = _kernel("layer_norm", rows, [gain, shift], eps)
    elif _max_takes(wide, eps):
        out = ops.layer_norm(wide, *_per_column(wide, gain, shift), eps)
    else:
        out = centred * rstd * ops.cast(gain, wide.dtype) + ops.cast(shift, wide.dtype)
    return _restore(out, x), *_statistics(x, normalized_shape, mean, rstd)


def rms_norm(
    x: TensorValue, normalized_shape: Sequence[IntLike], weight: TensorValue | None, eps: float
) -> TensorValue:
    """Root mean square normalisation (Zhang and Sennrich, 2019), computed in float32 for half and
    given in the weight's dtype where that is wider."""
    if weight is not None and accumulation_dtype(x.dtype) == weight.dtype:
        x = ops.cast(x, weight.dtype)
    rows = as_rows(x, normalized_shape)
    gain = factors(weight, x, 1.0)
    wide = ops.cast(rows, accumulation_dtype(x.dtype))
    if x.device.is_cpu():
        out = _kernel("rms_norm", rows, [gain], eps)
    elif _max_takes(wide, eps):
        out = ops.rms_norm(wide, *_per_column(wide, gain), eps)
    else:
        scale = ops.rsqrt(ops.mean(wide * wide, -1) + eps)
        out = wide * scale * ops.cast(gain, wide.dtype)
    return _restore(out, x)


def _max_takes(rows: TensorValue, eps: float) -> bool:
    """Whether MAX's kernels do: they want a positive eps and float32, and MAX 26.6 refuses some
    graphs with empty rows."""
    empty = any(static(d) == 0 for d in rows.shape)
    return rows.dtype != DType.float64 and eps > 0 and not empty


def _per_column(rows: TensorValue, *factors: TensorValue) -> list[TensorValue]:
    """The factors in full and in the dtype of the rows, as MAX's kernels take them."""
    columns = [rows.shape[-1]]
    return [broadcast(ops.cast(factor, rows.dtype), columns) for factor in factors]


def _restore(out: TensorValue, x: TensorValue) -> TensorValue:
    return cast(reshape(out, list(x.shape)), x.dtype)


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
    return cast(out, x.dtype), *[ops.cast(value, x.dtype) for value in statistics]


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
    return cast(out, x.dtype)


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
    return arithmetic.quotient(squares, constant(degrees, x)), mean
