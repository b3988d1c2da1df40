"""Activation functions. Half precision arrives as float32."""

from __future__ import annotations

import math

from max.dtype import DType
from max.graph import TensorValue, ops

from torch_max_backend.ops.arithmetic import quotient
from torch_max_backend.ops.comparison import clamp, less, minimum
from torch_max_backend.ops.constants import constant
from torch_max_backend.ops.transcendental import erf, exp, expm1, log1p, tanh


def relu(x: TensorValue) -> TensorValue:
    """max(x, 0), NaN stays (MAX's relu gives 0)."""
    zero = constant(0, x)
    return ops.where(less(x, zero), zero, x)


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
    return quotient(hardtanh(x + constant(3, x), 0, 6), constant(6, x))


def hardswish(x: TensorValue) -> TensorValue:
    """x * relu6(x + 3) / 6 (Howard et al., 2019)."""
    return quotient(x * hardtanh(x + constant(3, x), 0, 6), constant(6, x))


def softplus(x: TensorValue, beta: float = 1, threshold: float = 20) -> TensorValue:
    """log(1 + exp(beta x)) / beta, linear above the threshold."""
    scaled = x * constant(beta, x)
    smooth = quotient(log1p(exp(scaled)), constant(beta, x))
    return ops.where(scaled > constant(threshold, x), x, smooth)


def sigmoid(x: TensorValue) -> TensorValue:
    """1 / (1 + exp(-x))."""
    return constant(1, x) / (constant(1, x) + exp(ops.negate(x)))


def silu(x: TensorValue) -> TensorValue:
    """x * sigmoid(x) (Elfwing et al., 2017)."""
    return x / (constant(1, x) + exp(ops.negate(x)))


def quick_gelu(x: TensorValue) -> TensorValue:
    """x * sigmoid(1.702 x) (Hendrycks and Gimpel, 2016)."""
    return x / (constant(1, x) + exp(x * constant(-1.702, x)))


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
