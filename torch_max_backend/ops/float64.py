"""exp, log, erf and their kin in float64, where MAX computes them to 8 to 13 digits.

Built from what MAX has to the last digit: tanh, atanh and powers of two.
"""

from __future__ import annotations

import math

from max.dtype import DType
from max.graph import TensorValue, ops

_LN2_HIGH = 6.93147180369123816490e-01  # 32 bits: whole multiples are exact
_LN2_LOW = 1.90821492927058770002e-10

# Chebyshev coefficients in 2t - 1 of log(erfc(x) / t) + x^2 with t = 2 / (2 + x), x >= 0
# (fitted to 1e-17 with 60 digits).
_ERFC = (
    -0.6513268598908547,
    0.6419697923564902,
    0.019476473204185836,
    -0.009561514786808632,
    -0.0009465953444820369,
    0.00036683949785276145,
    4.252332480690777e-05,
    -2.0278578112534242e-05,
    -1.6242900046470256e-06,
    1.3036558355805232e-06,
    1.5626441722066142e-08,
    -8.523809591492654e-08,
    6.5290544390988515e-09,
    5.059343495551469e-09,
    -9.91364156493033e-10,
    -2.273651222931836e-10,
    9.646791102015527e-11,
    2.3940380830391146e-12,
    -6.886027526497553e-12,
    8.944879273090725e-13,
    3.130921399342958e-13,
    -1.1270822361367252e-13,
    3.810905255189232e-16,
    7.106097613609237e-15,
    -1.5230282014571043e-15,
    -9.457494571291233e-17,
    1.210237189224279e-16,
)


def _constant(value: float, x: TensorValue) -> TensorValue:
    return ops.constant(value, DType.float64, device=x.device)


def _scaled(x: TensorValue, power: TensorValue) -> TensorValue:
    """x * 2**power for a whole number in float64; in two steps, lest 2**power overflow."""
    two = _constant(2, x)
    half = ops.floor(power * _constant(0.5, x))
    return x * ops.pow(two, half) * ops.pow(two, power - half)


def exp(x: TensorValue) -> TensorValue:
    """2**k * (1 + tanh(r/2)) / (1 - tanh(r/2)) with x = k log(2) + r."""
    k = ops.round(x * _constant(1 / math.log(2), x))
    k = ops.min(ops.max(k, _constant(-1100, x)), _constant(1100, x))
    r = x - k * _constant(_LN2_HIGH, x) - k * _constant(_LN2_LOW, x)
    out = _exp_scaled(r, k)
    out = ops.where(x > _constant(709.79, x), _constant(math.inf, x), out)
    out = ops.where(_constant(-745.2, x) > x, _constant(0, x), out)
    return ops.where(ops.is_nan(x), x, out)


def exp2(x: TensorValue) -> TensorValue:
    """2**k exp(log(2) (x - k)) with k the nearest whole number."""
    k = ops.round(ops.min(ops.max(x, _constant(-1100, x)), _constant(1100, x)))
    out = _exp_scaled((x - k) * _constant(math.log(2), x), k)
    out = ops.where(ops.greater_equal(x, _constant(1024, x)), _constant(math.inf, x), out)
    out = ops.where(_constant(-1080, x) > x, _constant(0, x), out)
    return ops.where(ops.is_nan(x), x, out)


def _exp_scaled(r: TensorValue, k: TensorValue) -> TensorValue:
    """2**k exp(r) for a small r."""
    one = _constant(1, r)
    t = ops.tanh(r * _constant(0.5, r))
    return _scaled((one + t) / (one - t), k)


def expm1(x: TensorValue) -> TensorValue:
    """2 t / (1 - t) with t = tanh(x/2) where small, else exp(x) - 1."""
    one = _constant(1, x)
    t = ops.tanh(x * _constant(0.5, x))
    small = ops.abs(x) < _constant(0.7, x)
    return ops.where(small, t * _constant(2, x) / (one - t), exp(x) - one)


def log(x: TensorValue) -> TensorValue:
    """k log(2) + 2 atanh((m - 1) / (m + 1)) with x = 2**k m."""
    one, zero = _constant(1, x), _constant(0, x)
    k = ops.round(ops.log(x) * _constant(1 / math.log(2), x))
    positive = ops.logical_and(x > zero, ops.logical_not(ops.is_inf(x)))
    k = ops.where(positive, k, zero)
    m = _scaled(ops.where(positive, x, one), ops.negate(k))
    tail = ops.atanh((m - one) / (m + one)) * _constant(2, x) + k * _constant(_LN2_LOW, x)
    out = k * _constant(_LN2_HIGH, x) + tail
    out = ops.where(ops.equal(x, zero), _constant(-math.inf, x), out)
    out = ops.where(zero > x, _constant(math.nan, x), out)
    return ops.where(ops.logical_or(ops.is_nan(x), ops.equal(x, _constant(math.inf, x))), x, out)


def erf(x: TensorValue) -> TensorValue:
    """The Taylor series near 0, else 1 - erfc by a Chebyshev fit of its logarithm."""
    size = ops.abs(x)
    square = size * size
    series = _constant(0, x)
    for n in reversed(range(14)):
        series = series * square + _constant((-1) ** n / (math.factorial(n) * (2 * n + 1)), x)
    near = x * series * _constant(2 / math.sqrt(math.pi), x)
    t = _constant(2, x) / (_constant(2, x) + size)
    far = _constant(1, x) - t * exp(_chebyshev(_ERFC, t * _constant(2, x) - 1.0) - square)
    far = ops.where(size > _constant(6, x), _constant(1, x), far)
    far = ops.where(x < 0.0, ops.negate(far), far)
    out = ops.where(size < _constant(0.5, x), near, far)
    return ops.where(ops.is_nan(x), x, out)


def _chebyshev(coefficients: tuple[float, ...], s: TensorValue) -> TensorValue:
    """Clenshaw's recurrence."""
    after, current = _constant(0, s), _constant(0, s)
    for c in reversed(coefficients[1:]):
        current, after = s * current * 2.0 - after + c, current
    return s * current - after + coefficients[0]


def power(x: TensorValue, y: TensorValue) -> TensorValue:
    """exp(y log|x|) with the sign and the special values of MAX's pow.

    Its error grows with the logarithm of the result: up to that many units in the last place.
    """
    rough = ops.pow(x, y)
    fine = exp(y * log(ops.abs(x)))
    fine = ops.where(rough < 0.0, ops.negate(fine), fine)
    special = ops.logical_or(ops.is_nan(rough), ops.is_nan(fine))
    return ops.where(special, rough, fine)
