"""torch.dtype <-> max.dtype.DType, total both ways for what MAX holds."""

from __future__ import annotations

import torch
from max.dtype import DType

from torch_max_backend.errors import InputError

TORCH_TO_MAX: dict[torch.dtype, DType] = {
    torch.bool: DType.bool,
    torch.uint8: DType.uint8,
    torch.uint16: DType.uint16,
    torch.uint32: DType.uint32,
    torch.uint64: DType.uint64,
    torch.int8: DType.int8,
    torch.int16: DType.int16,
    torch.int32: DType.int32,
    torch.int64: DType.int64,
    torch.float16: DType.float16,
    torch.bfloat16: DType.bfloat16,
    torch.float32: DType.float32,
    torch.float64: DType.float64,
    torch.float8_e4m3fn: DType.float8_e4m3fn,
    torch.float8_e5m2: DType.float8_e5m2,
}
MAX_TO_TORCH: dict[DType, torch.dtype] = {v: k for k, v in TORCH_TO_MAX.items()}


def to_max(dtype: torch.dtype) -> DType:
    """The MAX dtype of a torch dtype; InputError where MAX has none (complex, quantised)."""
    try:
        return TORCH_TO_MAX[dtype]
    except KeyError:
        known = ", ".join(str(d).removeprefix("torch.") for d in TORCH_TO_MAX)
        raise InputError(f"MAX has no dtype for {dtype}; it has {known}") from None


def to_torch(dtype: DType) -> torch.dtype:
    """The torch dtype of a MAX dtype; InputError where torch has none."""
    try:
        return MAX_TO_TORCH[dtype]
    except KeyError:
        raise InputError(f"torch has no dtype for MAX's {dtype}") from None
