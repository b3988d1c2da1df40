"""exp, log, erf and their kin in float64, where MAX computes them to 8 to 13 digits.

Built from what MAX has to the last digit: tanh, atanh and powers of two.
"""

from __future__ import annotations

import math

from max.dtype import DType
from max.graph import TensorValue, ops

_LN2_HIGH = 6.93147180369123816490e-01  # 32 bits: whole multiples are exact
_LN2_LOW = 1.90821492927058770002e-10

# log(erfc(x) / t) + x^2 with t = 2 / (2 + x), x >= 0, as a polynomial in 2t - 1, the constant first
# (a Chebyshev fit to 1e-17 with 60 digits).
_ERFC = (
    -0.6717940840566923,
    0.672643223977656,
    0.04734330684190443,
    -0.046895610231083025,
    -0.009872689366389959,
    0.008824938553738762,
    0.001758933557799016,
    -0.002345812444802156,
    -0.00014624686337800336,
    0.0006736782697069831,
    -9.37350311709817e-05,
    -0.00017429984933155647,
    7.14010141275703e-05,
    3.173310599377061e-05,
    -3.0187884551394243e-05,
    1.6992332312276997e-07,
    8.562623420121286e-06,
    -3.007645434410669e-06,
    -1.27231190486887e-06,
    1.3267813608518889e-06,
    -1.6849800720653297e-07,
    -3.168341367694147e-07,
    1.5334345920908177e-07,
    3.972203547273795e-08,
    -3.917182051027186e-08,
    -1.5867042924138042e-09,
    4.06088214696972e-09,
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
    small = _constant(0.7, x) > ops.abs(x)
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
    """The Taylor series near 0, else 1 - erfc by a fit of its logarithm."""
    size = ops.abs(x)
    square = size * size
    series = _constant(0, x)
    for n in reversed(range(14)):
        series = series * square + _constant((-1) ** n / (math.factorial(n) * (2 * n + 1)), x)
    near = x * series * _constant(2 / math.sqrt(math.pi), x)
    t = _constant(2, x) / (_constant(2, x) + size)
    s = t * _constant(2, x) - _constant(1, x)
    exponent = _constant(0, x)
    for c in reversed(_ERFC):  # Horner: MAX would compute what is used twice anew for each use
        exponent = exponent * s + _constant(c, x)
    far = _constant(1, x) - t * exp(exponent - square)
    far = ops.where(size > _constant(6, x), _constant(1, x), far)
    far = ops.where(_constant(0, x) > x, ops.negate(far), far)
    out = ops.where(_constant(0.5, x) > size, near, far)
    return ops.where(ops.is_nan(x), x, out)
