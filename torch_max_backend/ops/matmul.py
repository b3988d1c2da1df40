"""Matrix products."""

from __future__ import annotations

from max.dtype import DType
from max.graph import TensorType, TensorValue, ops

from torch_max_backend.context import residual, strided_operand
from torch_max_backend.dims import IntLike, static
from torch_max_backend.ops.gpu_products import gpu_product
from torch_max_backend.ops.rounding import cast
from torch_max_backend.ops.shape import agree, drop_axes, filled, reshape
from torch_max_backend.promotion import accumulation_dtype
from torch_max_backend.views import dense_strides


def linear(a: TensorValue, weight: TensorValue) -> TensorValue:
    """a @ weight^T for (..., M, K) a and (..., N, K) weight; see ``product``."""
    return product(a, weight, turned=True)


def matmul(a: TensorValue, b: TensorValue) -> TensorValue:
    """a @ b for (..., M, K) a and (..., K, N) b of one dtype, rounded once."""
    return product(a, b, turned=False, dtype=a.dtype)


def product(
    a: TensorValue, right: TensorValue, *, turned: bool, dtype: DType | None = None
) -> TensorValue:
    """The product of matrices with equal leading axes and one dtype; ``turned`` as in ``linear``.

    Without a ``dtype`` in the one it is summed up in, so that what follows is computed in that and
    rounded once. An empty contraction gives zeros.
    """
    out = _product(a, right, turned, dtype)
    return out if dtype is None else cast(out, dtype)


def _product(a: TensorValue, right: TensorValue, turned: bool, dtype: DType | None) -> TensorValue:
    *lead, rows, depth = a.shape
    columns = right.shape[-2 if turned else -1]
    right = agree(right, [*lead, columns, depth] if turned else [*lead, depth, columns])
    if _is_empty(a, right):
        return filled(0, [*lead, rows, columns], dtype or a.dtype, a.device)
    if a.device.is_cpu() and a.dtype.is_float():
        return _cpu_product(a, right, turned, dtype)
    if a.device.is_cpu() and a.dtype == DType.int8:
        return _cpu_product(a, right if turned else ops.transpose(right, -2, -1), True, dtype)
    if a.dtype.is_float():
        return gpu_product(a, right, turned)
    return _integer_product(a, ops.transpose(right, -2, -1) if turned else right)


def _cpu_product(
    a: TensorValue, right: TensorValue, turned: bool, dtype: DType | None
) -> TensorValue:
    """By our kernel, which knows one batch axis and rounds to bfloat16 faster than MAX."""
    sums = DType.int32 if a.dtype == DType.int8 else accumulation_dtype(a.dtype)
    result = DType.bfloat16 if dtype == DType.bfloat16 else sums
    *lead, rows, _ = a.shape
    columns = right.shape[-2 if turned else -1]
    if len(lead) > 1:
        a, right = (reshape(x, [-1, *list(x.shape)[-2:]]) for x in (a, right))
    if a.dtype.is_float() and not takes_bfloat16(a):
        a, right = ops.cast(a, sums), ops.cast(right, sums)
    kind = TensorType(result, [*list(a.shape)[:-1], columns], a.device)
    out = _linear(a, right, kind) if turned else _matmul(a, right, kind)
    return reshape(out, [*lead, rows, columns]) if len(lead) > 1 else out


def _linear(
    a: TensorValue, right: TensorValue, kind: TensorType, packed: bool = False
) -> TensorValue:
    return _linear_kernel("linear", [a, right], kind, packed=packed)


def _linear_kernel(
    name: str, operands: list[TensorValue], kind: TensorType, **parameters: bool | str
) -> TensorValue:
    """A linear layer of ours. It fetches ahead what a residual connection adds to its result."""
    beside = residual()
    (out,) = ops.custom(
        f"torch_max_backend.{name}",
        kind.device,
        [*operands, operands[0] if beside is None else beside],
        [kind],
        {**parameters, "fetched": beside is not None},
    )
    return out.tensor


def _matmul(a: TensorValue, right: TensorValue, kind: TensorType) -> TensorValue:
    return ops.custom("torch_max_backend.matmul", a.device, [a, right], [kind])[0].tensor


def _is_empty(*operands: TensorValue) -> bool:
    return any(static(d) == 0 for x in operands for d in x.shape)


def takes_bfloat16(x: TensorValue) -> bool:
    """Whether our kernels read this bfloat16 value as it is; else they get float32."""
    return x.dtype == DType.bfloat16 and x.device.is_cpu()


def _integer_product(a: TensorValue, b: TensorValue) -> TensorValue:
    """As a sum of outer products: MAX's kernels are for floats."""
    left = ops.unsqueeze(ops.cast(a, DType.int64), -1)
    right = ops.unsqueeze(ops.cast(b, DType.int64), -3)
    product = ops.sum(left * right, -2)
    return ops.cast(ops.squeeze(product, -2), a.dtype)


def _turned_operand(b: TensorValue, place: int) -> TensorValue | None:
    """The (..., N, K) matrix as which b, that argument of the node, lies in memory, if it does: a
    transposed weight, as a linear layer's."""
    operand = strided_operand(place)
    if operand is not None and operand.offset == 0:
        *lead, depth, columns = b.shape
        turned = [*lead, columns, depth]
        *outer, row, one = dense_strides(turned)
        if turned == list(operand.base.shape) and operand.strides == (*outer, one, row):
            return operand.base
    return None


def _operand_product(
    a: TensorValue, b: TensorValue, place: int, dtype: DType | None = None
) -> TensorValue:
    """a @ b, b being that argument of the node; a transposed weight is read as it lies."""
    weight = _turned_operand(b, place)
    return product(a, b if weight is None else weight, turned=weight is not None, dtype=dtype)


def mm(a: TensorValue, b: TensorValue) -> TensorValue:
    """a @ b for the node's two arguments, matrices with or without a batch axis."""
    return _operand_product(a, b, 1, a.dtype)


def int_mm(a: TensorValue, b: TensorValue) -> TensorValue:
    """a @ b for the node's two arguments, int8 matrices (or a uint8 a), as int32."""
    if a.dtype == DType.uint8:  # 128 more than an int8
        excess = ops.sum(ops.cast(b, DType.int32), 0) * 128
        a = ops.cast(ops.cast(a, DType.int32) - 128, DType.int8)
        return int_mm(a, b) + excess
    if not a.device.is_cpu():
        a, b = ops.cast(a, DType.int32), ops.cast(b, DType.int32)
        return product(a, b, turned=False)
    return _operand_product(a, b, 1, DType.int32)


def mv(a: TensorValue, vector: TensorValue) -> TensorValue:
    """a @ vector, in the dtype it is summed up in."""
    row = linear(ops.unsqueeze(vector, 0), a)
    return drop_axes(row, [0])


def addmm(
    bias: TensorValue, a: TensorValue, b: TensorValue, beta: float, alpha: float
) -> TensorValue:
    """beta * bias + alpha * (a @ b); beta 0 ignores the bias, NaNs in it included.

    Half precision is rounded once, after the sum.
    """
    weight = _turned_operand(b, 2)
    if weight is not None and list(bias.shape) == list(b.shape)[1:] and beta == alpha == 1:
        return linear_layer(a, weight, bias)
    return cast(_scaled_sum(bias, _operand_product(a, b, 2), beta, alpha), a.dtype)


def addmv(
    bias: TensorValue, a: TensorValue, vector: TensorValue, beta: float, alpha: float
) -> TensorValue:
    """beta * bias + alpha * (a @ vector), as ``addmm``."""
    return cast(_scaled_sum(bias, mv(a, vector), beta, alpha), a.dtype)


def _scaled_sum(bias: TensorValue, out: TensorValue, beta: float, alpha: float) -> TensorValue:
    if alpha != 1:
        out = out * alpha
    if beta != 0:
        bias = agree(widened(bias, out), list(out.shape))
        out = out + (bias if beta == 1 else bias * beta)
    return out


def widened(bias: TensorValue, out: TensorValue) -> TensorValue:
    """A bias in the dtype of what it is added to."""
    return bias if bias.dtype == out.dtype else ops.cast(bias, out.dtype)


def linear_layer(a: TensorValue, weight: TensorValue, bias: TensorValue) -> TensorValue:
    """a @ weight^T + bias for (M, K), (N, K), (N), rounded once.

    MAX joins a bias to the product well, rounding to bfloat16 badly (see ``rounding``).
    """
    if takes_bfloat16(a) and not _is_empty(a, weight):
        return biased_linear(a, weight, bias)
    out = linear(a, weight)
    return cast(out + widened(bias, out), a.dtype)


def biased_linear(
    a: TensorValue, weight: TensorValue, bias: TensorValue, activation: str = "none"
) -> TensorValue:
    """activation(a @ weight^T + bias) for (M, K), (N, K), (N), float32 or bfloat16 on CPU, rounded
    once, by our kernel."""
    columns = weight.shape[0]
    weight = agree(weight, [columns, a.shape[1]])
    return _biased_linear(a, weight, bias, columns, activation, packed=False)


def _biased_linear(
    a: TensorValue,
    weight: TensorValue,
    bias: TensorValue,
    columns: IntLike,
    activation: str,
    packed: bool,
) -> TensorValue:
    operands = [a, weight, agree(bias, [columns])]
    kind = TensorType(a.dtype, [a.shape[0], columns], a.device)
    return _linear_kernel("biased_linear", operands, kind, activation=activation, packed=packed)


def gated_linear(
    a: TensorValue,
    weight: TensorValue,
    bias: TensorValue,
    activation: str,
    gates_first: bool,
    packed: bool = False,
) -> TensorValue:
    """One half of the columns of a linear layer, over (M, K), (2 F, K), (2 F), times the activation
    of the other, (M, F); as :func:`biased_linear`. A packed weight is in panels."""
    kind = TensorType(a.dtype, [a.shape[0], bias.shape[0] // 2], a.device)
    if not packed:
        weight = agree(weight, [bias.shape[0], a.shape[1]])
    parameters = {"activation": activation, "gates_first": gates_first, "packed": packed}
    name = "torch_max_backend.gated_linear"
    return ops.custom(name, a.device, [a, weight, bias], [kind], parameters)[0].tensor


def packed_linear(
    a: TensorValue,
    panels: TensorValue,
    bias: TensorValue | None,
    features: int,
    activation: str = "none",
) -> TensorValue:
    """activation(a @ weight^T + bias) for (M, K), (N) and a weight (N, K) in panels on CPU, rounded
    once; int32 for int8."""
    if bias is not None and (activation != "none" or takes_bfloat16(a)):
        return _biased_linear(a, panels, bias, features, activation, packed=True)
    dtype = DType.int32 if a.dtype == DType.int8 else a.dtype
    out = _linear(a, panels, TensorType(dtype, [a.shape[0], features], a.device), packed=True)
    return out if bias is None else out + bias
