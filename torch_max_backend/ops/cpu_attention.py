"""Attention by our CPU kernel, which reads queries, keys and values where they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

from max.dtype import DType
from max.graph import DeviceRef, TensorType, TensorValue, ops

from torch_max_backend import context
from torch_max_backend.dims import dim_value, static
from torch_max_backend.ops.matmul import takes_bfloat16
from torch_max_backend.ops.rounding import cast
from torch_max_backend.ops.shape import agree, broadcast, permute, reshape


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
    dtype = q.dtype if takes_bfloat16(q) else DType.float32
    values: list[TensorValue] = []
    for place, x in enumerate((q, k, v)):
        values += _operand(place, cast(x, dtype))
    values += [dim_value(k.shape[1]), dim_value(k.shape[2]), dim_value(q.shape[3])]
    values.append(ops.constant(scale, DType.float32, device=host))
    values.append(dim_value(int(causal)))
    name = "torch_max_backend.attention"
    if mask is not None:
        name = "torch_max_backend.masked_attention"
        values.append(ops.constant(empty_rows, DType.float32, device=host))
        values.append(_bias(agree(mask, [*list(q.shape)[:3], k.shape[2]]), k))
    kind = TensorType(dtype, [q.shape[0], q.shape[2], q.shape[1], v.shape[3]], host)
    out = permute(ops.custom(name, host, values, [kind])[0].tensor, [0, 2, 1, 3])
    return cast(out, q.dtype)


def _operand(place: int, x: TensorValue) -> Sequence[TensorValue]:
    """The numbers, and where element (b, h, i, 0) is: an offset and three strides."""
    view = context.strided_operand(place)
    fits = view is not None and view.base.dtype == x.dtype and len(view.strides) == 4
    if view is not None and fits and static(view.strides[3]) == 1:
        base, offset, strides = view.base, view.offset, list(view.strides[:3])
    else:
        _, _, length, width = x.shape
        base, offset, strides = x, 0, [x.shape[1] * length * width, length * width, width]
    return [reshape(base, [-1]), dim_value(offset), *(dim_value(stride) for stride in strides)]


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
