"""Element-wise functions that MAX lacks or computes otherwise than torch.

Operands have one dtype; half precision arrives as float32.

MAX's ``<`` and ``<=`` are the negations of ``>=`` and ``>``, True for NaN, and its ``not_equal`` is
False for NaN: :func:`less`, :func:`less_equal` and :func:`not_equal` compare as IEEE 754 has it.
MAX also folds ``x * 0``, ``x - x`` and ``x == x`` as if there were no NaN and no infinity.
"""

from __future__ import annotations

import math

from max.dtype import DType
from max.graph import TensorValue, ops

from torch_max_backend.context import operand_is_zero
from torch_max_backend.ops import float64


def constant(value: float, x: TensorValue) -> TensorValue:
    """A 0-d constant of x's dtype on x's device."""
    return ops.constant(value if x.dtype.is_float() else int(value), x.dtype, device=x.device)


def add(x: TensorValue, y: TensorValue, alpha: float = 1) -> TensorValue:
    """x + alpha * y; bools are or-ed."""
    if x.dtype == DType.bool:
        return ops.logical_or(x, y)
    return x + (y if alpha == 1 else y * constant(alpha, y))


def sub(x: TensorValue, y: TensorValue, alpha: float = 1) -> TensorValue:
    """x - alpha * y."""
    if x is y and alpha == 1 and x.dtype.is_float():
        return ops.where(is_finite(x), constant(0, x), constant(math.nan, x))
    return x - (y if alpha == 1 else y * constant(alpha, y))


def rsub(x: TensorValue, y: TensorValue, alpha: float = 1) -> TensorValue:
    """y - alpha * x."""
    return sub(y, x, alpha)


def negate(x: TensorValue) -> TensorValue:
    """-x; MAX negates signed numbers only."""
    return ops.negate(x) if x.dtype.is_float() else constant(0, x) - x


def mul(x: TensorValue, y: TensorValue) -> TensorValue:
    """x * y; bools are and-ed."""
    if x.dtype == DType.bool:
        return ops.logical_and(x, y)
    for place, factor in ((0, y), (1, x)):
        if x.dtype.is_float() and operand_is_zero(place):
            return _times_zero(factor, x if place == 0 else y)
    return x * y


def _times_zero(x: TensorValue, zero: TensorValue) -> TensorValue:
    """x * zero for a zero that MAX can see: NaN for NaN and infinity, else a zero of x's sign."""
    signed = ops.where(signbit(x), constant(-0.0, x), constant(0.0, x))
    out = ops.where(is_finite(x), signed, constant(math.nan, x))
    return out + zero  # in the shape of both


def signbit(x: TensorValue) -> TensorValue:
    """True for negative numbers and -0.0."""
    zero = constant(0, x)
    return ops.logical_or(less(x, zero), less(constant(1, x) / x, zero))


def divide(x: TensorValue, y: TensorValue, rounding_mode: str | None = None) -> TensorValue:
    """x / y, exact, floored or truncated."""
    if rounding_mode is None:
        return ops.div(x, y)
    if x.dtype.is_float():
        quotient = ops.div(x, y)
        return floor_divide(x, y) if rounding_mode == "floor" else ops.trunc(quotient)
    floored = ops.floor_div(x, y)
    if rounding_mode == "floor":
        return floored
    exact = ops.equal(floored * y, x)
    below = ops.logical_and(ops.logical_not(exact), less(floored, constant(0, x)))
    return floored + ops.cast(below, x.dtype)


def floor_divide(x: TensorValue, y: TensorValue) -> TensorValue:
    """floor(x / y) without the rounding of the quotient, as Python's // does it."""
    if not x.dtype.is_float():
        return ops.floor_div(x, y)
    rest, zero, one = fmod(x, y), constant(0, x), constant(1, x)
    exact = ops.div(x, y)
    quotient = ops.div(x - rest, y)
    down = ops.logical_and(not_equal(rest, zero), not_equal(less(rest, zero), less(y, zero)))
    quotient = ops.where(down, quotient - one, quotient)
    nearest = ops.floor(quotient)
    nearest = ops.where(quotient - nearest > constant(0.5, x), nearest + one, nearest)
    signed = ops.where(not_equal(signbit(x), signbit(y)), constant(-0.0, x), zero)
    nearest = ops.where(ops.equal(quotient, zero), signed, nearest)
    return ops.where(ops.equal(y, zero), exact, nearest)


def fmod(x: TensorValue, y: TensorValue) -> TensorValue:
    """The remainder with the sign of the dividend."""
    if not x.dtype.is_float():
        return x - divide(x, y, "trunc") * y
    zero = constant(0, x)
    rest = _modulo(ops.abs(x), ops.abs(y))
    signed = ops.where(less(x, zero), ops.negate(rest), rest)
    divisible = ops.logical_not(ops.logical_or(ops.equal(y, zero), is_nan(y)))
    unchanged = ops.logical_or(
        ops.logical_and(is_inf(y), ops.logical_not(is_inf(x))),
        ops.logical_and(ops.equal(x, zero), divisible),
    )
    return ops.where(unchanged, x, signed)


def _modulo(x: TensorValue, y: TensorValue) -> TensorValue:
    """x mod y for sizes, where MAX's loses the digits of large quotients in float32.

    Each step takes 29 bits of the quotient: with the 24 of y their product is exact in float64.
    A quotient of more than 58 bits gives NaN. (MAX computes a value anew for every use, so that
    each further step doubles the work.)
    """
    if x.dtype != DType.float32 or not x.device.is_cpu():
        return ops.mod(x, y)
    rest, y = (ops.cast(v, DType.float64) for v in (x, y))
    low, high = y, y * constant(2.0**29, y)
    known = less(x, ops.cast(high * constant(2.0**29, y), DType.float32))
    for step in (high, low):
        rest = rest - ops.floor(rest / step) * step
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


def maximum(x: TensorValue, y: TensorValue) -> TensorValue:
    """The larger; NaN wins (MAX ignores it)."""
    if x.dtype == DType.bool:
        return ops.logical_or(x, y)
    larger = ops.where(x > y, x, y)
    return ops.where(ops.is_nan(x), x, larger) if x.dtype.is_float() else larger


def minimum(x: TensorValue, y: TensorValue) -> TensorValue:
    """The smaller; NaN wins."""
    if x.dtype == DType.bool:
        return ops.logical_and(x, y)
    smaller = ops.where(y > x, x, y)
    return ops.where(ops.is_nan(x), x, smaller) if x.dtype.is_float() else smaller


def clamp(x: TensorValue, low: TensorValue | None, high: TensorValue | None) -> TensorValue:
    """min(max(x, low), high); NaN stays, and so does the sign of a zero at a bound of zero."""
    if x.dtype == DType.bool:
        x = x if low is None else ops.logical_or(x, low)
        return x if high is None else ops.logical_and(x, high)
    for bound, beyond in ((low, less), (high, ops.greater)):
        if bound is not None:
            replaced = beyond(x, bound)
            if x.dtype.is_float():
                replaced = ops.logical_or(replaced, is_nan(bound))
            x = ops.where(replaced, bound, x)
    return x


def power(x: TensorValue, y: TensorValue) -> TensorValue:
    """x ** y; integer powers by squaring, wrapping as torch's do."""
    if x.dtype.is_float():
        return _signed_power(_power_of_size(ops.abs(x), y), x, y)
    one, zero = constant(1, x), constant(0, x)
    result, base, rest = ops.where(ops.equal(x, x), one, one), x, y
    for _ in range(6 if x.dtype in (DType.int64, DType.int32) else 4):
        odd = not_equal(ops.mod(rest, constant(2, x)), zero)
        result = ops.where(odd, result * base, result)
        base, rest = base * base, ops.floor_div(rest, constant(2, x))
    # a negative exponent is 1 / x ** -y, truncated: only +-1 are not 0
    unit = ops.logical_or(ops.equal(x, one), ops.equal(x, zero - one))
    even = ops.equal(ops.mod(y, constant(2, x)), zero)
    inverse = ops.where(unit, ops.where(even, one, x), zero)
    return ops.where(less(y, zero), inverse, result)


def _power_of_size(size: TensorValue, y: TensorValue) -> TensorValue:
    """size ** y for size >= 0, right but where 0 and infinity meet as factors."""
    if size.dtype == DType.float64:
        return float64.exp(y * float64.log(size))
    if size.device.is_cpu():  # MAX's is 10 units off in float32
        wide = [ops.cast(v, DType.float64) for v in (size, y)]
        return ops.cast(_power_of_size(wide[0], wide[1]), size.dtype)
    return ops.pow(size, y)


def _signed_power(size: TensorValue, x: TensorValue, y: TensorValue) -> TensorValue:
    """x ** y from |x| ** y, with the special values of C's pow."""
    zero, one, nan = constant(0, x), constant(1, x), constant(math.nan, x)
    whole = ops.equal(ops.floor(y), y)
    halved = y * constant(0.5, y)
    odd = ops.logical_and(whole, not_equal(ops.floor(halved), halved))
    negative = less(x, zero)
    out = ops.where(ops.logical_and(odd, signbit(x)), ops.negate(size), size)
    undefined = ops.logical_and(negative, ops.logical_not(ops.logical_or(whole, is_inf(x))))
    out = ops.where(ops.logical_or(undefined, ops.logical_or(is_nan(x), is_nan(y))), nan, out)
    unit = ops.logical_and(ops.equal(x, constant(-1, x)), is_inf(y))
    unit = ops.logical_or(unit, ops.logical_or(ops.equal(x, one), ops.equal(y, zero)))
    return ops.where(unit, one, out)


def power_scalar(x: TensorValue, exponent: TensorValue | float) -> TensorValue:
    """x ** number; small whole exponents are products."""
    if isinstance(exponent, int | float) and x.dtype.is_float():
        if exponent == 0.5:
            return ops.sqrt(x)
        if exponent == 0:
            return ops.where(ops.equal(x, x), constant(1, x), constant(1, x))
        if exponent == int(exponent) and abs(exponent) <= 8:
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


def relu(x: TensorValue) -> TensorValue:
    """max(x, 0), NaN stays (MAX's relu gives 0)."""
    zero = constant(0, x)
    return ops.where(less(x, zero), zero, x)


def sign(x: TensorValue) -> TensorValue:
    """-1, 0 or 1."""
    zero, one = constant(0, x), constant(1, x)
    if x.dtype == DType.bool:
        return x
    signed = ops.where(x > zero, one, ops.where(less(x, zero), zero - one, zero))
    return signed


def leaky_relu(x: TensorValue, negative_slope: float = 0.01) -> TensorValue:
    """x where positive, else x * slope."""
    return ops.where(x > constant(0, x), x, x * constant(negative_slope, x))


def elu(x: TensorValue, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> TensorValue:
    """Exponential linear unit (Clevert et al., 2015)."""
    negative = expm1(x * constant(input_scale, x)) * constant(alpha * scale, x)
    return ops.where(x > constant(0, x), x * constant(scale, x), negative)


def hardtanh(x: TensorValue, min_val: float = -1, max_val: float = 1) -> TensorValue:
    """x limited to [min_val, max_val]."""
    return clamp(x, constant(min_val, x), constant(max_val, x))


def hardsigmoid(x: TensorValue) -> TensorValue:
    """relu6(x + 3) / 6."""
    return hardtanh(x + constant(3, x), 0, 6) / constant(6, x)


def hardswish(x: TensorValue) -> TensorValue:
    """x * relu6(x + 3) / 6 (Howard et al., 2019)."""
    return x * hardtanh(x + constant(3, x), 0, 6) / constant(6, x)


def softplus(x: TensorValue, beta: float = 1, threshold: float = 20) -> TensorValue:
    """log(1 + exp(beta x)) / beta, linear above the threshold."""
    scaled = x * constant(beta, x)
    smooth = log1p(exp(scaled)) / constant(beta, x)
    return ops.where(scaled > constant(threshold, x), x, smooth)


def sigmoid(x: TensorValue) -> TensorValue:
    """1 / (1 + exp(-x))."""
    return constant(1, x) / (constant(1, x) + exp(ops.negate(x)))


def silu(x: TensorValue) -> TensorValue:
    """x * sigmoid(x) (Elfwing et al., 2017)."""
    return x / (constant(1, x) + exp(ops.negate(x)))


def mish(x: TensorValue) -> TensorValue:
    """x * tanh(softplus(x)) (Misra, 2019)."""
    return x * tanh(softplus(x))


def gelu(x: TensorValue, approximate: str = "none") -> TensorValue:
    """Gaussian error linear unit (Hendrycks and Gimpel, 2016)."""
    if x.dtype != DType.float64:
        return ops.gelu(x, approximate)
    if approximate == "none":
        half, one = constant(0.5, x), constant(1, x)
        return x * half * (one + erf(x * constant(math.sqrt(0.5), x)))
    twice = constant(math.sqrt(8 / math.pi), x) * (x + constant(0.044715, x) * x * x * x)
    return x * sigmoid(twice)  # (1 + tanh(u)) / 2 = sigmoid(2u)


def log_sigmoid(x: TensorValue) -> TensorValue:
    """log(sigmoid(x)) without overflow."""
    return minimum(x, constant(0, x)) - log1p(exp(ops.negate(ops.abs(x))))


def reciprocal(x: TensorValue) -> TensorValue:
    """1 / x."""
    return constant(1, x) / x


def square(x: TensorValue) -> TensorValue:
    """x * x."""
    return x * x


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
    return log(x) / constant(math.log(2), x)


def log10(x: TensorValue) -> TensorValue:
    """Logarithm to the base 10."""
    return log(x) / constant(math.log(10), x)


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


def absolute(x: TensorValue) -> TensorValue:
    """|x|."""
    return x if x.dtype in (DType.bool, DType.uint8) else ops.abs(x)


def lerp(start: TensorValue, end: TensorValue, weight: TensorValue) -> TensorValue:
    """start + weight (end - start), from the nearer end, as torch does it."""
    difference = end - start
    near_start = less(ops.abs(weight), constant(0.5, start))
    return ops.where(
        near_start, start + weight * difference, end - difference * (constant(1, start) - weight)
    )


def is_nan(x: TensorValue) -> TensorValue:
    """True where NaN; integers have none."""
    return ops.is_nan(x) if x.dtype.is_float() else ops.not_equal(x, x)


def is_inf(x: TensorValue) -> TensorValue:
    """True where infinite; integers never are."""
    return ops.is_inf(x) if x.dtype.is_float() else ops.not_equal(x, x)


def is_finite(x: TensorValue) -> TensorValue:
    """True where neither NaN nor infinite."""
    return ops.logical_not(ops.logical_or(is_nan(x), is_inf(x)))


def nonzero_bool(x: TensorValue) -> TensorValue:
    """True where x is not 0 (NaN counts)."""
    return x if x.dtype == DType.bool else not_equal(x, constant(0, x))


def logical_not(x: TensorValue) -> TensorValue:
    """True where x is 0."""
    return ops.logical_not(nonzero_bool(x))


def logical_and(x: TensorValue, y: TensorValue) -> TensorValue:
    """True where both are not 0."""
    return ops.logical_and(nonzero_bool(x), nonzero_bool(y))


def logical_or(x: TensorValue, y: TensorValue) -> TensorValue:
    """True where one is not 0."""
    return ops.logical_or(nonzero_bool(x), nonzero_bool(y))


def logical_xor(x: TensorValue, y: TensorValue) -> TensorValue:
    """True where exactly one is not 0."""
    return not_equal(nonzero_bool(x), nonzero_bool(y))


def cast_value(x: TensorValue, dtype: DType) -> TensorValue:
    """x in another dtype; to bool: True where not 0."""
    if x.dtype == dtype:
        return x
    return nonzero_bool(x) if dtype == DType.bool else ops.cast(x, dtype)


def less(x: TensorValue, y: TensorValue) -> TensorValue:
    """x < y; False where one is NaN."""
    return ops.greater(y, x)


def less_equal(x: TensorValue, y: TensorValue) -> TensorValue:
    """x <= y; False where one is NaN."""
    return greater_equal(y, x)


def equal(x: TensorValue, y: TensorValue) -> TensorValue:
    """x == y; False where one is NaN."""
    return ops.logical_not(is_nan(x)) if x is y else ops.equal(x, y)


def greater_equal(x: TensorValue, y: TensorValue) -> TensorValue:
    """x >= y; False where one is NaN."""
    return ops.logical_not(is_nan(x)) if x is y else ops.greater_equal(x, y)


def not_equal(x: TensorValue, y: TensorValue) -> TensorValue:
    """x != y; True where one is NaN."""
    return ops.logical_not(equal(x, y))
