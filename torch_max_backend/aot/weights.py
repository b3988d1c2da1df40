"""Weights of a package: safetensors, written by its library and mapped in place when read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torch_max_backend.errors import DamagedPackageError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH = 8  # bytes of the header's size


def write_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes the tensors, dense."""
    from safetensors.torch import save_file

    # safetensors refuses tensors that share memory
    dense = {
        name: x.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, x in tensors.items()
    }
    save_file(dense, path)


def read_weights(data: memoryview, where: object) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file as views of its mapped bytes.

    Raises:
        DamagedPackageError: not such a file, or one that contradicts itself.
    """
    try:
        size = int.from_bytes(data[:_LENGTH], "little")
        header = json.loads(bytes(data[_LENGTH : _LENGTH + size]))
        numbers = data[_LENGTH + size :]
        return {
            name: _tensor(numbers, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedPackageError(f"the weights in {where} cannot be read: {error}") from error


def _tensor(numbers: memoryview, entry: Mapping[str, Any]) -> torch.Tensor:
    dtype = _DTYPES[entry["dtype"]]
    shape = [int(n) for n in entry["shape"]]
    start, end = entry["data_offsets"]
    count = 1
    for n in shape:
        count *= n
    if min([0, *shape]) < 0 or not 0 <= start <= end <= len(numbers):
        raise ValueError(f"offsets {start}..{end} of a shape {shape}")
    if end - start != count * dtype.itemsize:
        raise ValueError(f"{end - start} bytes for {count} numbers of {dtype}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(numbers[start:end], dtype=dtype).reshape(shape)
