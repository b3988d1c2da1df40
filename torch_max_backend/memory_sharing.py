"""Torch tensors and MAX buffers over the same memory, by DLPack.

Between CPU tensors the capsules change hands here: ``Tensor.__dlpack__`` and ``torch.from_dlpack``
are a page of Python each, mostly about streams of GPUs, and cost 30 us a call where MAX's threads
have just had the processor's caches.
"""

from __future__ import annotations

from typing import Any

import torch
from max.driver import Buffer
from torch.utils.dlpack import from_dlpack, to_dlpack

_CPU = (1, 0)  # kDLCPU


class _CPUTensor:
    """What ``Buffer.from_dlpack`` asks for of a tensor on CPU."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return to_dlpack(self.tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU


def is_shareable(tensor: torch.Tensor) -> bool:
    """Whether the memory holds the tensor's numbers as MAX reads them."""
    return tensor.is_contiguous() and not tensor.is_neg()


def buffer_of(tensor: torch.Tensor) -> Buffer:
    """A buffer over the tensor's memory, or over a copy where that is not shareable."""
    # detached: a weight's own object must not be kept alive by its buffer
    tensor = tensor.detach().contiguous().resolve_neg()
    return Buffer.from_dlpack(_CPUTensor(tensor) if tensor.is_cpu else tensor)


def tensor_of(buffer: Buffer) -> torch.Tensor:
    """A tensor over the buffer's memory."""
    if buffer.__dlpack_device__() == _CPU:
        return from_dlpack(buffer.__dlpack__())
    return from_dlpack(buffer)
