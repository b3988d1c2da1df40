"""Random numbers, seeded per call from torch's default generator.

A graph with random operators has one more input, a seed drawn by the executable at each call:
``torch.manual_seed`` reproduces a run, two calls differ. The stream is MAX's, not torch's.
"""

from __future__ import annotations

import torch
from max.dtype import DType
from max.graph import DeviceRef, TensorType, TensorValue, ops

from torch_max_backend.context import expected, expected_shape
from torch_max_backend.dtypes import to_max
from torch_max_backend.ops.constants import constant

RANDOM_OPERATORS = frozenset(
    {
        torch.ops.aten.bernoulli.default,
        torch.ops.aten.bernoulli.p,
        torch.ops.aten.native_dropout.default,
        torch.ops.aten.rand.default,
        torch.ops.aten.rand_like.default,
        torch.ops.aten.randn.default,
        torch.ops.aten.randn_like.default,
    }
)


def seed_type() -> TensorType:
    """The type of the seed input."""
    return ops.random.SeedType(DeviceRef.CPU())


def _like(dtype: DType, device: DeviceRef, index: int | None) -> TensorType:
    return TensorType(dtype, expected_shape(index), device)


def _device(index: int | None) -> DeviceRef:
    from torch_max_backend.accelerators import to_device_ref

    return to_device_ref(expected(index).device)


def uniform(index: int | None = None) -> TensorValue:
    """Uniform in [0, 1), with the shape and dtype of the node's result (or of one of them)."""
    dtype = to_max(expected(index).dtype)
    sample = ops.random.uniform(_like(DType.float32, _device(index), index))
    bits = {DType.float16: 11, DType.bfloat16: 8}.get(dtype)
    if bits is not None:  # rounding to half precision must not reach 1
        scale = 2.0**bits
        sample = ops.floor(sample * constant(scale, sample)) * constant(1 / scale, sample)
    return ops.cast(sample, dtype)


def normal() -> TensorValue:
    """Standard normal, with the shape and dtype of the node's result."""
    sample = ops.random.gaussian(_like(DType.float32, _device(None), None))
    return ops.cast(sample, to_max(expected().dtype))


def bernoulli(p: TensorValue | float) -> TensorValue:
    """1 with probability p, else 0, in the dtype of the node's result."""
    sample = ops.random.uniform(_like(DType.float32, _device(None), None))
    chance = ops.cast(p, DType.float32) if isinstance(p, TensorValue) else constant(p, sample)
    return ops.cast(ops.greater(chance, sample), to_max(expected().dtype))


def dropout(x: TensorValue, p: float, train: bool | None) -> tuple[TensorValue, TensorValue]:
    """(x with elements dropped and the rest scaled by 1 / (1 - p), bool mask of those kept)."""
    sample = ops.random.uniform(_like(DType.float32, x.device, 0))
    if train is False or p == 0:
        return x, ops.greater(constant(2.0, sample), sample)
    keep = ops.greater_equal(sample, constant(p, sample))
    scale = 0.0 if p == 1 else 1.0 / (1.0 - p)
    return ops.where(keep, x * constant(scale, x), constant(0.0, x)), keep
