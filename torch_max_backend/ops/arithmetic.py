"""Arithmetic, division and rounding. Operands have one dtype; half precision arrives as float32.

MAX folds ``x * 0``, ``x - x`` and ``x == x`` as if there were no NaN and no infinity.
"""

from __future__ import annotations

import math

import torch
from max.dtype import DType
from max.graph import TensorValue, ops

from torch_max_backend.context import constant_of, operand_is_zero, real_tensors
from torch_max_backend.dtypes import to_torch
from torch_max_backend.ops.comparison import (
    equal,
    is_finite,
    is_inf,
    less,
    nonzero_bool,
    not_equal,
    signbit,
)
from torch_max_backend.ops.constants import constant, tensor_constant
from torch_max_backend.ops.rounding import cast
from torch_max_backend.scalars import cast_scalar, number_of


def absolute(x: TensorValue) -> TensorValue:
    """|x|."""
    if x.dtype == DType.bool or x.dtype.is_unsigned_integral():
        return x
    number = number_of(x)
    return ops.abs(x) if number is None else constant(abs(number), x)


def add(x: TensorValue, y: TensorValue, alpha: float = 1) -> TensorValue:
    """x + alpha * y; bools are or-ed."""
    if x.dtype == DType.bool:
        return ops.logical_or(x, y)
    return x + (y if alpha == 1 else y * constant(alpha, y))


def sub(x: TensorValue, y: TensorValue, alpha: float = 1) -> TensorValue:
    """x - alpha * y."""
    if x is y and alpha == 1 and x.dtype.is_float():
        return ops.where(is_finite(x), constant(0, x), constant(math.nan, x))
    if x.dtype.is_unsigned_integral():  # MAX makes 0 - y a negation, which it then refuses
        return x + y * constant(-alpha % (1 << x.dtype.size_in_bits), y)
    return x - (y if alpha == 1 else y * constant(alpha, y))


def rsub(x: TensorValue, y: TensorValue, alpha: float = 1) -> TensorValue:
    """y - alpha * x."""
    return sub(y, x, alpha)


def negate(x: TensorValue) -> TensorValue:
    """-x."""
    return sub(constant(0, x), x) if x.dtype.is_unsigned_integral() else ops.negate(x)


def mul(x: TensorValue, y: TensorValue) -> TensorValue:
    """x * y; bools are and-ed."""
    if x.dtype == DType.bool:
        return ops.logical_and(x, y)
    for place, factor in ((0, y), (1, x)):
        if x.dtype.is_float() and operand_is_zero(place):
            return _times_zero(factor, x if place == 0 else y)
    return x * y


def _times(x: TensorValue, factor: float) -> TensorValue:
    """x * factor; a number stays one."""
    number = number_of(x)
    return x * constant(factor, x) if number is None else constant(number * factor, x)


def _times_zero(x: TensorValue, zero: TensorValue) -> TensorValue:
    """x * zero for a zero that MAX can see: NaN for NaN and infinity, else a zero of x's sign."""
    signed = ops.where(signbit(x), constant(-0.0, x), constant(0.0, x))
    out = ops.where(is_finite(x), signed, constant(math.nan, x))
    return out + zero  # in the shape of both


def floor_div(x: TensorValue, y: TensorValue) -> TensorValue:
    """floor(x / y) of integers."""
    if number_of(y) is not None:
        y = ops.min(ops.max(x, y), y)  # y, not as a constant: MAX would fold y < 0
    return ops.floor_div(x, y)


def quotient(x: TensorValue, y: TensorValue) -> TensorValue:
    """x / y of floats.

    MAX turns a division by a constant into a product with 1 / y, rounded twice: 41 / 41 is less
    than 1 in float32. The product of float64 is right when it is rounded to float32.
    """
    number = number_of(y)
    if number is not None and math.isinf(number):
        return _times_zero(x if number > 0 else ops.negate(x), constant(0, x))
    exact = number is not None and math.frexp(number)[0] in (-0.5, 0.5)
    widened = x.dtype == DType.float32 and x.device.is_cpu() and not exact
    inverse = _inverse(y, DType.float64 if widened else x.dtype)
    if inverse is None:
        return ops.div(x, y)
    return ops.cast(ops.cast(x, inverse.dtype) * inverse, x.dtype)


def _inverse(y: TensorValue, dtype: DType) -> TensorValue | None:
    """1 / y where y is a constant without infinities."""
    number = number_of(y)
    with real_tensors():
        known = constant_of(y) if number is None else torch.tensor(number, dtype=torch.float64)
        if known is None or known.isinf().any():
            return None
        return tensor_constant((1 / known.double()).to(to_torch(dtype)), y.device)


def divide(x: TensorValue, y: TensorValue, rounding_mode: str | None = None) -> TensorValue:
    """x / y, exact, floored or truncated."""
    if rounding_mode is None:
        return quotient(x, y)
    if x.dtype.is_float():
        return floor_divide(x, y) if rounding_mode == "floor" else _truncated(x, y)
    floored = floor_div(x, y)
    if rounding_mode == "floor":
        return floored
    exact = ops.equal(floored * y, x)
    below = ops.logical_and(ops.logical_not(exact), less(floored, constant(0, x)))
    return floored + ops.cast(below, x.dtype)


def _truncated(x: TensorValue, y: TensorValue) -> TensorValue:
    """trunc(x / y), also of a multiple of y whose quotient was rounded to less."""
    rounded = quotient(x, y)
    nearest = ops.round(rounded)
    return ops.where(ops.equal(nearest * y, x), nearest, ops.trunc(rounded))


def floor_divide(x: TensorValue, y: TensorValue) -> TensorValue:
    """floor(x / y) without the rounding of the quotient, as Python's // does it."""
    if not x.dtype.is_float():
        return floor_div(x, y)
    rest, zero, one = fmod(x, y), constant(0, x), constant(1, x)
    exact = quotient(x, y)
    whole = quotient(x - rest, y)
    down = ops.logical_and(not_equal(rest, zero), not_equal(less(rest, zero), less(y, zero)))
    whole = ops.where(down, whole - one, whole)
    nearest = ops.floor(whole)
    nearest = ops.where(whole - nearest > constant(0.5, x), nearest + one, nearest)
    signed = ops.where(not_equal(signbit(x), signbit(y)), constant(-0.0, x), zero)
    nearest = ops.where(ops.equal(whole, zero), signed, nearest)
    return ops.where(equal(y, zero), exact, nearest)


def fmod(x: TensorValue, y: TensorValue) -> TensorValue:
    """The remainder with the sign of the dividend."""
    if not x.dtype.is_float():
        return x - divide(x, y, "trunc") * y
    zero = constant(0, x)
    rest = _modulo(absolute(x), absolute(y))
    signed = ops.where(less(x, zero), ops.negate(rest), rest)
    within = ops.logical_and(is_inf(y), ops.logical_not(is_inf(x)))
    divisible = ops.logical_and(less(zero, absolute(y)), ops.equal(x, zero))
    return ops.where(ops.logical_or(within, divisible), x, signed)


def _modulo(x: TensorValue, y: TensorValue) -> TensorValue:
    """x mod y for sizes, where MAX's loses the digits of large quotients in float32.

    Each step takes 29 bits of the quotient: with the 24 of y their product is exact in float64.
    A quotient of more than 58 bits gives NaN. (MAX computes a value anew for every use, so that
    each further step doubles the work.)
    """
    if x.dtype != DType.float32 or not x.device.is_cpu():
        return ops.mod(x, y)
    rest, y = (cast_scalar(v, DType.float64) for v in (x, y))
    high = _times(y, 2.0**29)
    known = less(x, cast_scalar(_times(high, 2.0**29), DType.float32))
    for step in (high, y):
        rest = rest - ops.floor(quotient(rest, step)) * step
    rest = ops.where(less(rest, constant(0, rest)), rest + y, rest)
    rest = ops.where(ops.greater_equal(rest, y), rest - y, rest)
    return ops.where(known, ops.cast(rest, DType.float32), constant(math.nan, x))


def remainder(x: TensorValue, y: TensorValue) -> TensorValue:
    """The remainder with the sign of the divisor, Python's %."""
    if not x.dtype.is_float():
        return ops.mod(x, y)
    rest = fmod(x, y)
    zero = constant(0, x)
    differ = not_equal(less(rest, zero), less(y, zero))
    return ops.where(ops.logical_and(not_equal(rest, zero), differ), rest + y, rest)


def reciprocal(x: TensorValue) -> TensorValue:
    """1 / x."""
    return constant(1, x) / x


def square(x: TensorValue) -> TensorValue:
    """x * x."""
    return x * x


def ceil(x: TensorValue) -> TensorValue:
    """The least integer not below x; integers stay."""
    return ops.negate(ops.floor(ops.negate(x))) if x.dtype.is_float() else x


def floor(x: TensorValue) -> TensorValue:
    """The greatest integer not above x; integers stay."""
    return ops.floor(x) if x.dtype.is_float() else x


def trunc(x: TensorValue) -> TensorValue:
    """x without its fraction; integers stay."""
    return ops.trunc(x) if x.dtype.is_float() else x


def round_even(x: TensorValue) -> TensorValue:
    """The nearest integer, ties to even; integers stay."""
    return ops.round(x) if x.dtype.is_float() else x


def lerp(start: TensorValue, end: TensorValue, weight: TensorValue) -> TensorValue:
    """start + weight (end - start), from the nearer end, as torch does it."""
    difference = end - start
    number = number_of(weight)
    if number is not None:
        if abs(number) < 0.5:
            return start + weight * difference
        return end - difference * constant(1 - number, start)
    near_start = less(ops.abs(weight), constant(0.5, start))
    return ops.where(
        near_start, start + weight * difference, end - difference * (constant(1, start) - weight)
    )


def cast_value(x: TensorValue, dtype: DType) -> TensorValue:
    """x in another dtype; to bool: True where not 0."""
    if x.dtype == dtype:
        return x
    return nonzero_bool(x) if dtype == DType.bool else cast(x, dtype)
