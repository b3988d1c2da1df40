"""What a package says of itself: readable without loading the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torch_max_backend.size_trees import Tree


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Args:
        name: as in the model's signature, e.g. "x" or "kwargs['mask']".
        dtype: what it must be; what it is.
        shape: sizes: numbers, names of symbols, or expressions of them as in ``size_trees``.
        device: "cpu" or a kind of GPU.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[Tree, ...]
    device: str

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(self.shape),
            "device": self.device,
        }

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> TensorSpec:
        return TensorSpec(
            str(entry["name"]),
            dtype_named(entry["dtype"]),
            tuple(entry["shape"]),
            str(entry["device"]),
        )

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')} [{shape}]"


def dtype_named(name: str) -> torch.dtype:
    """torch.float32 for "float32".

    Raises:
        ValueError: no dtype of that name.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no dtype is named {name!r}")
    return dtype
