"""Matrix products."""

from __future__ import annotations

from max.dtype import DType
from max.graph import TensorValue, ops

from torch_max_backend.dims import static
from torch_max_backend.ops.shape import broadcast


def matmul(a: TensorValue, b: TensorValue) -> TensorValue:
    """a @ b for operands of one float dtype and rank >= 2; an empty contraction gives zeros."""
    if static(a.shape[-1]) == 0 or any(static(d) == 0 for d in (*a.shape, *b.shape)):
        zero = ops.constant(0, a.dtype, device=a.device)
        return broadcast(zero, [*list(a.shape)[:-1], b.shape[-1]])
    if not a.dtype.is_float():
        return _integer_matmul(a, b)
    return ops.matmul(a, b)


def _integer_matmul(a: TensorValue, b: TensorValue) -> TensorValue:
    """Integer products as a sum of outer products: MAX's kernels are for floats."""
    left = ops.unsqueeze(ops.cast(a, DType.int64), -1)
    right = ops.unsqueeze(ops.cast(b, DType.int64), -3)
    product = ops.sum(left * right, -2)
    return ops.cast(ops.squeeze(product, -2), a.dtype)


def addmm(
    bias: TensorValue, a: TensorValue, b: TensorValue, beta: float, alpha: float
) -> TensorValue:
    """beta * bias + alpha * (a @ b); beta 0 ignores the bias, NaNs in it included."""
    out = matmul(a, b)
    if alpha != 1:
        out = out * alpha
    if beta == 0:
        return out
    return out + (bias if beta == 1 else bias * beta)
