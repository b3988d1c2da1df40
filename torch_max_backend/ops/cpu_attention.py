"""Attention by our CPU kernel, which reads queries, keys and values where they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

from max.dtype import DType
from max.graph import DeviceRef, TensorType, TensorValue, ops

from torch_max_backend import context
from torch_max_backend.context import Strided
from torch_max_backend.dims import IntLike, dim_value, static
from torch_max_backend.ops.matmul import takes_bfloat16
from torch_max_backend.ops.rounding import cast
from torch_max_backend.ops.shape import agree, broadcast, permute, reshape
from torch_max_backend.views import dense_strides


def takes(q: TensorValue, k: TensorValue, v: TensorValue) -> bool:
    """Whether the kernel serves these (B, H, L, E) operands: on CPU, not empty, not float64."""
    return (
        q.device.is_cpu()
        and q.dtype != DType.float64
        and context.options().attention == "flash"
        and not any(static(d) == 0 for x in (q, k, v) for d in x.shape)
    )


def cpu_attention(
    q: TensorValue,
    k: TensorValue,
    v: TensorValue,
    mask: TensorValue | None,
    causal: bool,
    scale: float,
    empty_rows: float = 0.0,
) -> TensorValue:
    """Attention of the node's first three arguments, given here as (B, H, L, E), (B, H_kv, S, E),
    (B, H_kv, S, F); a bool mask keeps where True, a float mask is added.
    Gives (B, H, L, F), ``empty_rows`` where no key is kept."""
    host = DeviceRef.CPU()
    result = q.dtype
    dtype = result if takes_bfloat16(q) else DType.float32
    q, k, v = (cast(x, dtype) for x in (q, k, v))
    q_rows, q_rotation = _rotated_operand(0, q)
    k_rows, k_rotation = _rotated_operand(1, k)
    values: list[TensorValue] = []
    for rows in (q_rows, k_rows, _operand(2, v)):
        values += [reshape(rows.base, [-1]), dim_value(rows.offset)]
        values += [dim_value(stride) for stride in rows.strides[:3]]
    nothing = values[0]
    values += [dim_value(k.shape[1]), dim_value(k.shape[2]), dim_value(q.shape[3])]
    values.append(ops.constant(scale, DType.float32, device=host))
    values.append(dim_value(int(causal)))
    values.append(ops.constant(empty_rows, DType.float32, device=host))
    scores = [*list(q.shape)[:3], k.shape[2]]
    values.append(nothing if mask is None else _bias(agree(mask, scores), k))
    for x, rotation in ((q, q_rotation), (k, k_rotation)):
        sizes = list(x.shape)[:2]
        values += angles(rotation, sizes) if rotation else [nothing, nothing, dim_value(0)]
    kind = TensorType(dtype, [q.shape[0], q.shape[2], q.shape[1], v.shape[3]], host)
    parameters = {
        "masked": mask is not None,
        "rotated_queries": q_rotation is not None,
        "rotated_keys": k_rotation is not None,
    }
    (out,) = ops.custom("torch_max_backend.attention", host, values, [kind], parameters)
    return cast(permute(out.tensor, [0, 2, 1, 3]), result)


def _rotated_operand(place: int, x: TensorValue) -> tuple[Strided, context.Rotation | None]:
    """As ``_operand``, before a rotation that is left to the kernel."""
    rotated = context.rotated_operand(place)
    if rotated is not None and _has_dense_rows(rotated[0], x.dtype):
        return rotated
    return _operand(place, x), None


def _operand(place: int, x: TensorValue) -> Strided:
    """How the node's argument lies in memory, if its rows do; ``x`` is what it is lowered to."""
    view = context.strided_operand(place)
    if view is not None and _has_dense_rows(view, x.dtype):
        return view
    return Strided(x, dense_strides(list(x.shape)), 0)


def _has_dense_rows(x: Strided, dtype: DType) -> bool:
    return x.base.dtype == dtype and len(x.strides) == 4 and static(x.strides[3]) == 1


def angles(rotation: context.Rotation, sizes: Sequence[IntLike]) -> list[TensorValue]:
    """Sines and cosines in float32, (B or 1, H or 1, L - first, E) for those sizes B and H, and how
    many rows are first."""
    tables = []
    for table in (rotation.sin, rotation.cos):
        table = ops.cast(table, DType.float32)
        table = reshape(table, [*([1] * (4 - table.rank)), *table.shape])
        tables.append(agree(table, [*sizes, *list(table.shape)[2:]]))
    return [*tables, dim_value(rotation.first)]


def _bias(mask: TensorValue, k: TensorValue) -> TensorValue:
    """The mask as float32 to be added, (B or 1, H or 1, L or 1, S)."""
    if mask.dtype == DType.bool:
        mask = additive(mask, DType.float32)
    mask = ops.cast(mask, DType.float32)
    return broadcast(mask, [*list(mask.shape)[:3], k.shape[2]])


def additive(keep: TensorValue, dtype: DType) -> TensorValue:
    """What is added to scores so that softmax keeps those where ``keep`` is True."""
    zero, minus = (ops.constant(c, dtype, device=keep.device) for c in (0.0, -math.inf))
    return ops.where(keep, zero, minus)
