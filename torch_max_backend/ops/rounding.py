"""Casts, rounded to bfloat16 by our kernel where MAX's would call a function for each number."""

from __future__ import annotations

from max.dtype import DType
from max.graph import TensorType, TensorValue, ops

from torch_max_backend.cpu import rounds_to_bfloat16


def cast(x: TensorValue, dtype: DType) -> TensorValue:
    """As ``ops.cast``. What computes x becomes part of the kernel."""
    if x.dtype == dtype:
        return x
    rounds = (x.dtype, dtype) == (DType.float32, DType.bfloat16) and x.device.is_cpu()
    if not rounds or not x.rank or rounds_to_bfloat16():
        return ops.cast(x, dtype)
    kind = TensorType(dtype, x.shape, x.device)
    return ops.custom("torch_max_backend.round", x.device, [x], [kind])[0].tensor
