"""Element-wise functions that MAX lacks or computes otherwise than torch.

Operands have one dtype; half precision arrives as float32.
"""

from __future__ import annotations

import math

from max.dtype import DType
from max.graph import TensorValue, ops

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
    return x - (y if alpha == 1 else y * constant(alpha, y))


def rsub(x: TensorValue, y: TensorValue, alpha: float = 1) -> TensorValue:
    """y - alpha * x."""
    return sub(y, x, alpha)


def mul(x: TensorValue, y: TensorValue) -> TensorValue:
    """x * y; bools are and-ed."""
    return ops.logical_and(x, y) if x.dtype == DType.bool else x * y


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
    below = ops.logical_and(ops.logical_not(exact), floored < constant(0, x))
    return floored + ops.cast(below, x.dtype)


def floor_divide(x: TensorValue, y: TensorValue) -> TensorValue:
    """floor(x / y) without the rounding of the quotient, as Python's // does it."""
    if not x.dtype.is_float():
        return ops.floor_div(x, y)
    remainder = fmod(x, y)
    quotient = ops.div(x - remainder, y)
    differ = ops.not_equal(remainder < constant(0, x), y < constant(0, x))
    down = ops.logical_and(ops.not_equal(remainder, constant(0, x)), differ)
    quotient = ops.where(down, quotient - constant(1, x), quotient)
    nearest = ops.floor(quotient)
    nearest = ops.where(quotient - nearest > constant(0.5, x), nearest + constant(1, x), nearest)
    by_zero = ops.equal(y, constant(0, x))
    return ops.where(by_zero, ops.div(x, y), nearest)


def fmod(x: TensorValue, y: TensorValue) -> TensorValue:
    """The remainder with the sign of the dividend."""
    if x.dtype.is_float():
        remainder = ops.mod(ops.abs(x), ops.abs(y))
        signed = ops.where(x < constant(0, x), ops.negate(remainder), remainder)
        endless = ops.logical_and(ops.is_inf(y), ops.logical_not(ops.is_inf(x)))
        return ops.where(endless, ops.where(ops.is_nan(x), x, x), signed)
    return x - divide(x, y, "trunc") * y


def remainder(x: TensorValue, y: TensorValue) -> TensorValue:
    """The remainder with the sign of the divisor, Python's %."""
    if not x.dtype.is_float():
        return ops.mod(x, y)
    rest = fmod(x, y)
    zero = constant(0, x)
    differ = ops.not_equal(rest < zero, y < zero)
    return ops.where(ops.logical_and(ops.not_equal(rest, zero), differ), rest + y, rest)


def maximum(x: TensorValue, y: TensorValue) -> TensorValue:
    """The larger; NaN wins (MAX ignores it)."""
    if x.dtype == DType.bool:
        return ops.logical_or(x, y)
    larger = ops.where(x < y, y, x)
    return ops.where(ops.is_nan(y), y, larger) if x.dtype.is_float() else larger


def minimum(x: TensorValue, y: TensorValue) -> TensorValue:
    """The smaller; NaN wins."""
    if x.dtype == DType.bool:
        return ops.logical_and(x, y)
    smaller = ops.where(y < x, y, x)
    return ops.where(ops.is_nan(y), y, smaller) if x.dtype.is_float() else smaller


def clamp(x: TensorValue, low: TensorValue | None, high: TensorValue | None) -> TensorValue:
    """min(max(x, low), high); NaN stays."""
    if low is not None:
        x = maximum(x, low)
    return x if high is None else minimum(x, high)


def power(x: TensorValue, y: TensorValue) -> TensorValue:
    """x ** y; integer powers by squaring, wrapping as torch's do."""
    if x.dtype == DType.float64:
        return float64.power(x, y)
    if x.dtype == DType.float32 and x.device.is_cpu():  # MAX's is 10 units off in float32
        return ops.cast(ops.pow(*(ops.cast(v, DType.float64) for v in (x, y))), DType.float32)
    if x.dtype.is_float():
        return ops.pow(x, y)
    one, zero = constant(1, x), constant(0, x)
    result, base, rest = ops.where(ops.equal(x, x), one, one), x, y
    for _ in range(6 if x.dtype in (DType.int64, DType.int32) else 4):
        odd = ops.not_equal(ops.mod(rest, constant(2, x)), zero)
        result = ops.where(odd, result * base, result)
        base, rest = base * base, ops.floor_div(rest, constant(2, x))
    # a negative exponent is 1 / x ** -y, truncated: only +-1 are not 0
    unit = ops.logical_or(ops.equal(x, one), ops.equal(x, zero - one))
    even = ops.equal(ops.mod(y, constant(2, x)), zero)
    inverse = ops.where(unit, ops.where(even, one, x), zero)
    return ops.where(y < zero, inverse, result)


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
    return ops.where(x < zero, zero, x)


def sign(x: TensorValue) -> TensorValue:
    """-1, 0 or 1."""
    zero, one = constant(0, x), constant(1, x)
    if x.dtype == DType.bool:
        return x
    signed = ops.where(x > zero, one, ops.where(x < zero, zero - one, zero))
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
    return x * ops.tanh(softplus(x))


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


def exp(x: TensorValue) -> TensorValue:
    """e ** x."""
    return float64.exp(x) if x.dtype == DType.float64 else ops.exp(x)


def exp2(x: TensorValue) -> TensorValue:
    """2 ** x."""
    return float64.exp2(x) if x.dtype == DType.float64 else ops.pow(constant(2, x), x)


def expm1(x: TensorValue) -> TensorValue:
    """exp(x) - 1 without cancellation near 0: (e - 1) x / log(e) with e = exp(x) (Kahan)."""
    if x.dtype == DType.float64:
        return float64.expm1(x)
    e = ops.exp(x)
    one = constant(1, x)
    kahan = (e - one) * x / ops.log(e)
    small = ops.where(ops.equal(e, one), x, kahan)
    plain = ops.logical_or(ops.abs(x) > constant(1, x), ops.is_nan(x))
    return ops.where(plain, e - one, small)


def log(x: TensorValue) -> TensorValue:
    """The natural logarithm."""
    return float64.log(x) if x.dtype == DType.float64 else ops.log(x)


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
    near_start = ops.abs(weight) < constant(0.5, start)
    return ops.where(
        near_start, start + weight * difference, end - difference * (constant(1, start) - weight)
    )


def is_nan(x: TensorValue) -> TensorValue:
    """True where NaN; integers have none."""
    return ops.is_nan(x) if x.dtype.is_float() else ops.not_equal(x, x)


def is_inf(x: TensorValue) -> TensorValue:
    """True where infinite; integers never are."""
    return ops.is_inf(x) if x.dtype.is_float() else ops.not_equal(x, x)


def nonzero_bool(x: TensorValue) -> TensorValue:
    """True where x is not 0 (NaN counts)."""
    return x if x.dtype == DType.bool else ops.not_equal(x, constant(0, x))


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
    return ops.not_equal(nonzero_bool(x), nonzero_bool(y))


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
    return ops.greater_equal(y, x)
