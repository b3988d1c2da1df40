"""Exponentials, logarithms, powers and trigonometry where MAX's differ from torch's.

Half precision arrives as float32; float64 has forms of its own in ``float64.py``.
"""

from __future__ import annotations

import math

from max.dtype import DType
from max.graph import TensorValue, ops

from torch_max_backend.ops import float64
from torch_max_backend.ops.arithmetic import absolute, floor_div, quotient
from torch_max_backend.ops.comparison import (
    decided_by,
    equal,
    greater_equal,
    is_inf,
    is_nan,
    less,
    less_equal,
    not_equal,
    signbit,
)
from torch_max_backend.ops.constants import constant
from torch_max_backend.scalars import cast_scalar, number_of


def erf(x: TensorValue) -> TensorValue:
    """The error function."""
    return float64.erf(x) if x.dtype == DType.float64 else ops.erf(x)


def _keep_nan(x: TensorValue, out: TensorValue) -> TensorValue:
    """MAX's exp, pow and tanh give numbers for NaN."""
    return ops.where(ops.is_nan(x), x, out)


def exp(x: TensorValue) -> TensorValue:
    """e ** x; squared from half the exponent, as MAX's stops at e ** 88.4."""
    if x.dtype == DType.float64:
        return float64.exp(x)
    root = ops.exp(x * constant(0.5, x))
    return _keep_nan(x, root * root)


def exp2(x: TensorValue) -> TensorValue:
    """2 ** x as e ** r times a power of two (MAX's is 8 units off, and 1 for infinity)."""
    if x.dtype == DType.float64:
        return float64.exp2(x)
    finite = ops.min(ops.max(x, constant(-200, x)), constant(200, x))
    whole = ops.round(finite)
    half = ops.floor(whole * constant(0.5, x))  # 2 ** whole may be beyond float32
    root = ops.exp((finite - whole) * constant(math.log(2), x))
    two = constant(2, x)
    return _keep_nan(x, root * ops.pow(two, half) * ops.pow(two, whole - half))


def expm1(x: TensorValue) -> TensorValue:
    """exp(x) - 1 without cancellation near 0: (e - 1) x / log(e) with e = exp(x) (Kahan)."""
    if x.dtype == DType.float64:
        return float64.expm1(x)
    e, one = exp(x), constant(1, x)
    kahan = (e - one) * x / ops.log(e)
    small = ops.where(ops.equal(e, one), x, kahan)
    return ops.where(less_equal(ops.abs(x), one), small, e - one)


def log(x: TensorValue) -> TensorValue:
    """The natural logarithm; MAX's of infinity is 88.7."""
    if x.dtype == DType.float64:
        return float64.log(x)
    return ops.where(ops.equal(x, constant(math.inf, x)), x, ops.log(x))


def log1p(x: TensorValue) -> TensorValue:
    """log(1 + x), near 0 as 2 atanh(x / (2 + x)) (MAX's is 13 units off at 0.4)."""
    near = constant(2, x) * ops.atanh(x / (constant(2, x) + x))
    small = ops.logical_and(x > constant(-0.5, x), constant(1, x) > x)
    return ops.where(small, near, log(constant(1, x) + x))


def log2(x: TensorValue) -> TensorValue:
    """Logarithm to the base 2."""
    return quotient(log(x), constant(math.log(2), x))


def log10(x: TensorValue) -> TensorValue:
    """Logarithm to the base 10."""
    return quotient(log(x), constant(math.log(10), x))


def tan(x: TensorValue) -> TensorValue:
    """sin / cos."""
    return ops.sin(x) / ops.cos(x)


def tanh(x: TensorValue) -> TensorValue:
    """The hyperbolic tangent."""
    return _keep_nan(x, ops.tanh(x))


def acos(x: TensorValue) -> TensorValue:
    """The inverse cosine; NaN beyond [-1, 1], where MAX gives 0 or pi."""
    inside = less_equal(ops.abs(x), constant(1, x))
    return ops.where(inside, ops.acos(x), constant(math.nan, x))


def power(x: TensorValue, y: TensorValue) -> TensorValue:
    """x ** y; integer powers by squaring, wrapping as torch's do."""
    if x.dtype.is_float():
        return _signed_power(_power_of_size(absolute(x), y), x, y)
    number = number_of(y)
    if number is not None and number > 0:
        return _whole_power(x, int(number))
    one, zero = constant(1, x), constant(0, x)
    result, base, rest = ops.where(ops.equal(x, x), one, one), x, y
    for _ in range(6 if x.dtype in (DType.int64, DType.int32) else 4):
        odd = not_equal(ops.mod(rest, constant(2, x)), zero)
        result = ops.where(odd, result * base, result)
        base, rest = base * base, floor_div(rest, constant(2, x))
    if x.dtype.is_unsigned_integral():
        return result
    # a negative exponent is 1 / x ** -y, truncated: only +-1 are not 0
    unit = ops.logical_or(ops.equal(x, one), ops.equal(x, constant(-1, x)))
    even = ops.equal(ops.mod(y, constant(2, x)), zero)
    inverse = ops.where(unit, ops.where(even, one, x), zero)
    return ops.where(less(y, zero), inverse, result)


def _power_of_size(size: TensorValue, y: TensorValue) -> TensorValue:
    """size ** y for size >= 0, right but where 0 and infinity meet as factors."""
    if size.dtype == DType.float64:
        return float64.exp(y * _log_of_size(size))
    if size.device.is_cpu():  # MAX's is 10 units off in float32
        wide = [cast_scalar(v, DType.float64) for v in (size, y)]
        return ops.cast(_power_of_size(wide[0], wide[1]), size.dtype)
    return ops.pow(size, y)


def _log_of_size(size: TensorValue) -> TensorValue:
    """log(size) of a float64 >= 0."""
    number = number_of(size)
    if number is None:
        return float64.log(size)
    return constant(math.log(number) if number else -math.inf, size)


def _signed_power(size: TensorValue, x: TensorValue, y: TensorValue) -> TensorValue:
    """x ** y from |x| ** y, with the special values of C's pow."""
    zero, one, nan = constant(0, x), constant(1, x), constant(math.nan, x)
    out = ops.where(ops.logical_and(_is_odd(y), signbit(x)), ops.negate(size), size)
    defined = ops.logical_or(ops.logical_or(_is_whole(y), is_inf(x)), greater_equal(x, zero))
    unknown = ops.logical_or(is_nan(x), is_nan(y))
    out = ops.where(ops.logical_or(ops.logical_not(defined), unknown), nan, out)
    unit = ops.logical_and(equal(x, constant(-1, x)), is_inf(y))
    unit = ops.logical_or(unit, ops.logical_or(equal(x, one), equal(y, zero)))
    return ops.where(unit, one, out)


@decided_by(lambda number: not math.isfinite(number) or number == math.floor(number))
def _is_whole(x: TensorValue) -> TensorValue:
    return ops.equal(ops.floor(x), x)


@decided_by(lambda number: math.isfinite(number) and number % 2 == 1)
def _is_odd(x: TensorValue) -> TensorValue:
    halved = x * constant(0.5, x)
    return ops.logical_and(_is_whole(x), not_equal(ops.floor(halved), halved))


def power_scalar(x: TensorValue, exponent: TensorValue | float) -> TensorValue:
    """x ** number; small whole exponents are products."""
    if isinstance(exponent, int | float):
        real = x.dtype.is_float()
        if exponent == 0.5 and real:
            return ops.sqrt(x)
        if exponent == 0:
            return ops.where(ops.equal(x, x), constant(1, x), constant(1, x))
        if abs(exponent) <= 8 and exponent == int(exponent) and (real or exponent > 0):
            product = _whole_power(x, abs(int(exponent)))
            return product if exponent > 0 else constant(1, x) / product
    if not isinstance(exponent, TensorValue):
        exponent = constant(exponent, x)
    return power(x, exponent)


def _whole_power(x: TensorValue, n: int) -> TensorValue:
    """x ** n for n >= 1 by squaring."""
    if n == 1:
        return x
    half = _whole_power(x, n // 2)
    return half * half * x if n % 2 else half * half
