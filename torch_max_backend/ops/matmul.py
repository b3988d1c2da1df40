"""Matrix products."""

from __future__ import annotations

from max.dtype import DType
from max.graph import TensorType, TensorValue, ops

from torch_max_backend.context import strided_operand
from torch_max_backend.cpu import multiplies_bfloat16
from torch_max_backend.dims import static
from torch_max_backend.ops.shape import agree, broadcast, slice_axis
from torch_max_backend.promotion import accumulation_dtype

_VECTOR = 16
"""float32 numbers in the widest vector register that MAX's CPU kernels use."""


def linear(a: TensorValue, weight: TensorValue) -> TensorValue:
    """a @ weight^T for (M, K) a and (N, K) weight, in the dtype it is summed up in: what follows
    is computed in that and rounded once."""
    if not _takes_kernel(a, weight):
        return matmul(a, ops.transpose(weight, 0, 1))
    kind = TensorType(DType.float32, [a.shape[0], weight.shape[0]], a.device)
    weight = agree(weight, [weight.shape[0], a.shape[1]])
    return ops.custom("torch_max_backend.linear", a.device, [a, weight], [kind])[0].tensor


def _takes_kernel(a: TensorValue, weight: TensorValue) -> bool:
    half = a.dtype == DType.bfloat16 and multiplies_bfloat16()
    return (
        a.device.is_cpu()
        and (a.dtype == DType.float32 or half)
        and not any(static(d) == 0 for d in (*a.shape, *weight.shape))
    )


def _product(a: TensorValue, b: TensorValue, place: int) -> TensorValue:
    """a @ b for matrices, b being that argument of the node; summed up as in ``linear`` where b is
    a transposed weight, which is then read as it lies."""
    operand = strided_operand(place)
    if operand is not None and operand.base.rank == 2 and operand.offset == 0:
        weight = operand.base
        rows, columns = weight.shape
        turned = operand.strides == (1, columns) and [columns, rows] == list(b.shape)
        if turned and _takes_kernel(a, weight):
            return linear(a, weight)
    return matmul(a, b)


def matmul(a: TensorValue, b: TensorValue) -> TensorValue:
    """a @ b for operands of one float dtype and rank >= 2; an empty contraction gives zeros."""
    if static(a.shape[-1]) == 0 or any(static(d) == 0 for d in (*a.shape, *b.shape)):
        zero = ops.constant(0, a.dtype, device=a.device)
        return broadcast(zero, [*list(a.shape)[:-1], b.shape[-1]])
    b = agree(b, [a.shape[-1], b.shape[-1]])
    if not a.dtype.is_float():
        return _integer_matmul(a, b)
    if a.device.is_cpu() and _may_be_column(b):
        return _matmul_column(a, b)
    return ops.matmul(a, b)


def _may_be_column(b: TensorValue) -> bool:
    """Whether MAX 26.6 may take its matrix-vector kernel for the CPU.

    The kernel reads past the end (and crashes) where the contraction leaves a part of a vector.
    """
    k = static(b.shape[-2])
    ragged = k is None or k % _VECTOR != 0
    one_matrix = all(static(d) in (1, None) for d in list(b.shape)[:-2])
    return ragged and one_matrix and static(b.shape[-1]) in (1, None)


def _matmul_column(a: TensorValue, b: TensorValue) -> TensorValue:
    if static(b.shape[-1]) == 1:
        wide = accumulation_dtype(a.dtype)
        row = ops.transpose(ops.cast(b, wide), -1, -2)
        return ops.cast(ops.sum(ops.cast(a, wide) * row, -1), a.dtype)
    columns = b.shape[-1]
    zeros = broadcast(ops.constant(0, b.dtype, device=b.device), [*list(b.shape)[:-1], 2])
    out = ops.matmul(a, ops.concat([b, zeros], -1))
    return slice_axis(out, out.rank - 1, 0, columns, 1, columns)


def _integer_matmul(a: TensorValue, b: TensorValue) -> TensorValue:
    """Integer products as a sum of outer products: MAX's kernels are for floats."""
    left = ops.unsqueeze(ops.cast(a, DType.int64), -1)
    right = ops.unsqueeze(ops.cast(b, DType.int64), -3)
    product = ops.sum(left * right, -2)
    return ops.cast(ops.squeeze(product, -2), a.dtype)


def mm(a: TensorValue, b: TensorValue) -> TensorValue:
    """a @ b for matrices, the node's two arguments."""
    return ops.cast(_product(a, b, 1), a.dtype)


def addmm(
    bias: TensorValue, a: TensorValue, b: TensorValue, beta: float, alpha: float
) -> TensorValue:
    """beta * bias + alpha * (a @ b); beta 0 ignores the bias, NaNs in it included.

    Half precision is rounded once, after the sum.
    """
    out = _product(a, b, 2)
    if alpha != 1:
        out = out * alpha
    if beta != 0:
        bias = widened(bias, out)
        out = out + (bias if beta == 1 else bias * beta)
    return ops.cast(out, a.dtype)


def widened(bias: TensorValue, out: TensorValue) -> TensorValue:
    """A bias in the dtype of what it is added to."""
    return bias if bias.dtype == out.dtype else ops.cast(bias, out.dtype)


def linear_gelu(
    input: TensorValue, weight: TensorValue, bias: TensorValue, approximate: str
) -> TensorValue:
    """gelu(input @ weight^T + bias) for (M, K), (N, K), (N), rounded once; see passes."""
    name = "torch_max_backend.linear_gelu" + ("" if approximate == "none" else "_tanh")
    rows = input.shape[0]
    kind = TensorType(DType.float32, [rows, weight.shape[0]], input.device)
    weight = agree(weight, [weight.shape[0], input.shape[1]])
    out = ops.custom(name, input.device, [input, weight, bias], [kind])[0].tensor
    return ops.cast(out, input.dtype)
