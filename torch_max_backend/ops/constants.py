"""Constants of a graph."""

from __future__ import annotations

import torch
from max.graph import DeviceRef, TensorValue, ops

from torch_max_backend.context import real_tensors
from torch_max_backend.dtypes import to_max
from torch_max_backend.scalars import scalar


def constant(value: float, x: TensorValue) -> TensorValue:
    """A 0-d constant of x's dtype on x's device."""
    return scalar(value if x.dtype.is_float() else int(value), x.dtype, x.device)


def tensor_constant(tensor: torch.Tensor, device: DeviceRef) -> TensorValue:
    """A real tensor's numbers on a device; AOTAutograd's fake tensor mode may be active."""
    with real_tensors():  # MAX asks the tensor where its memory is
        if not tensor.ndim:
            return scalar(tensor.item(), to_max(tensor.dtype), device)
        numbers = tensor.detach().cpu().contiguous()
        return ops.constant(numbers, to_max(tensor.dtype), device=device)
