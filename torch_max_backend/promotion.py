"""Torch's type promotion and broadcasting of operands; the only place that knows them.

Rules: https://docs.pytorch.org/docs/stable/tensor_attributes.html#type-promotion-doc
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TypeAlias

import torch
from max.dtype import DType
from max.graph import DeviceRef, Dim, TensorValue, ops

from torch_max_backend.dims import dim_value
from torch_max_backend.dtypes import to_max, to_torch
from torch_max_backend.scalars import Number, cast_scalar, scalar

Operand: TypeAlias = TensorValue | Number | Dim

HALF = (DType.float16, DType.bfloat16)


class Promotion(Enum):
    """How the dtype of an element-wise result follows from its operands (torch's kinds)."""

    DEFAULT = "the promoted dtype"
    INT_TO_FLOAT = "the promoted dtype; integers and bools become the default float dtype"
    INT_TO_LONG = "the promoted dtype; integers and bools become int64"
    ALWAYS_BOOL = "computed in the promoted dtype, the result is bool"
    NONE = "operands are taken as they are"


def accumulation_dtype(dtype: DType) -> DType:
    """The dtype in which torch computes on values of ``dtype``: float32 for half precision."""
    return DType.float32 if dtype in HALF else dtype


def _strongest(dtypes: Sequence[torch.dtype]) -> torch.dtype | None:
    result: torch.dtype | None = None
    for dtype in dtypes:
        result = dtype if result is None else torch.promote_types(result, dtype)
    return result


def _combine(high: torch.dtype | None, low: torch.dtype | None) -> torch.dtype | None:
    """A group of higher priority decides, unless the other's category (bool < int < float) wins."""
    if high is None or low is None:
        return high or low
    if high.is_floating_point:
        return high
    if high == torch.bool or low.is_floating_point:
        return torch.promote_types(high, low)
    return high


def promoted_dtype(operands: Sequence[Operand]) -> DType:
    """The common dtype: tensors of rank >= 1 outrank 0-d tensors, which outrank python numbers."""
    ranked: list[torch.dtype] = []
    zero_rank: list[torch.dtype] = []
    numbers: list[torch.dtype] = []
    for operand in operands:
        if isinstance(operand, TensorValue):
            (ranked if operand.rank else zero_rank).append(to_torch(operand.dtype))
        elif isinstance(operand, bool):
            numbers.append(torch.bool)
        elif isinstance(operand, int | Dim):
            numbers.append(torch.int64)
        else:
            numbers.append(torch.get_default_dtype())
    dtype = _combine(_strongest(ranked), _combine(_strongest(zero_rank), _strongest(numbers)))
    if dtype is None:
        raise TypeError("type promotion needs at least one operand")
    return to_max(dtype)


def resolve(operands: Sequence[Operand], kind: Promotion) -> tuple[DType, DType]:
    """(compute dtype, result dtype) of an element-wise op over these operands."""
    dtype = promoted_dtype(operands)
    if kind is Promotion.INT_TO_FLOAT and not dtype.is_float():
        dtype = to_max(torch.get_default_dtype())
    if kind is Promotion.INT_TO_LONG and not dtype.is_float():
        dtype = DType.int64
    result = DType.bool if kind is Promotion.ALWAYS_BOOL else dtype
    return accumulation_dtype(dtype), result


def common_device(operands: Sequence[Operand]) -> DeviceRef:
    """The device of the result: torch lets 0-d CPU tensors join tensors of any device."""
    devices = [o.device for o in operands if isinstance(o, TensorValue)]
    ranked = [o.device for o in operands if isinstance(o, TensorValue) and o.rank]
    accelerated = [device for device in (ranked or devices) if device.is_gpu()]
    return (accelerated or devices or [DeviceRef.CPU()])[0]


def as_tensor(operand: Operand, dtype: DType, device: DeviceRef) -> TensorValue:
    """An operand as a value of this dtype on this device; numbers become 0-d constants."""
    if isinstance(operand, Dim):
        operand = dim_value(operand)
    if not isinstance(operand, TensorValue):
        if dtype == DType.bool:
            operand = bool(operand)
        elif not dtype.is_float():
            operand = int(operand)
        return scalar(operand, dtype, device)
    if operand.dtype != dtype:
        truth = dtype == DType.bool  # 0.5 is true, a cast would truncate it; NaN too
        operand = ops.logical_not(ops.equal(operand, 0)) if truth else cast_scalar(operand, dtype)
    return operand if operand.device == device else operand.to(device)
