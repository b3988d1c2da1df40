"""Products of float matrices on GPUs.

On an H100, MAX 26.6 multiplied float32 in TF32 (of each factor it took 11 bits), and its product of
bfloat16 matrices was wrong wherever nothing element-wise was joined to it.
"""

from __future__ import annotations

import math

import torch
from max.driver import accelerator_api
from max.dtype import DType
from max.graph import TensorValue, ops

from torch_max_backend.promotion import HALF

_LARGEST = torch.finfo(torch.bfloat16).max


def gpu_product(a: TensorValue, right: TensorValue, turned: bool) -> TensorValue:
    """a @ right, or a @ right^T if ``turned``; of half precision in float32.

    float32 is as precise as ``torch.set_float32_matmul_precision`` asks: "highest", PyTorch's
    default, takes six times the multiplications of "high" and "medium".
    """
    if accelerator_api() == "cuda" and a.dtype in HALF:  # TF32 holds them
        a, right = ops.cast(a, DType.float32), ops.cast(right, DType.float32)
    elif in_full_precision(a):
        a, right = split_factors(a, right, turned)
    return ops.matmul(a, ops.transpose(right, -2, -1) if turned else right)


def in_full_precision(x: TensorValue) -> bool:
    """Whether products of x need more bits than MAX's own would take."""
    highest = torch.get_float32_matmul_precision() == "highest"
    return x.dtype == DType.float32 and accelerator_api() == "cuda" and highest


def split_factors(
    a: TensorValue, right: TensorValue, turned: bool
) -> tuple[TensorValue, TensorValue]:
    """Factors of six times the depth and 8 bits a number, with the float32 product of the two.

    Each number is the sum of a high, a middle and a low part (Henry, Tang and Heinecke, 2019); the
    products of two low ones, or of a low and a middle one, are below float32's last bit.
    """
    high, finite, middle, low = _parts(a)
    left = ops.concat([high, finite, middle, finite, middle, low], -1)
    high, finite, middle, low = _parts(right)
    others = [high, middle, finite, low, middle, finite]
    return left, ops.concat(others, -1 if turned else -2)


def _parts(x: TensorValue) -> tuple[TensorValue, ...]:
    """The high part, the same with zeros for infinities, whose product with a part that is zero
    would be NaN, the middle part and the low one."""

    def number(value: float) -> TensorValue:
        return ops.constant(value, DType.float32, device=x.device)

    high = _rounded(x)
    high = ops.where(high == number(math.inf), number(_LARGEST), high)
    high = ops.where(high == number(-math.inf), number(-_LARGEST), high)
    infinite = ops.abs(x) == number(math.inf)
    finite = ops.where(infinite, number(0.0), high)
    rest = ops.where(infinite, number(0.0), x - high)
    middle = _rounded(rest)
    return ops.where(infinite, x, high), finite, middle, rest - middle


def _rounded(x: TensorValue) -> TensorValue:
    return ops.cast(ops.cast(x, DType.bfloat16), DType.float32)
