"""Numbers as int8 and scales."""

from __future__ import annotations

from max.dtype import DType
from max.graph import DeviceRef, TensorType, TensorValue, ops

from torch_max_backend.ops.shape import reshape


def quantize_rows(
    x: TensorValue, divisor: float, eps: float, activation: str
) -> tuple[TensorValue, TensorValue]:
    """int8 numbers and float32 scales of the rows of x, by our kernel; see passes.operators."""
    rows = reshape(x, [-1, x.shape[-1]])
    count, columns = rows.shape
    kinds = [
        TensorType(DType.int8, [count, columns], x.device),
        TensorType(DType.float32, [count, 1], x.device),
    ]
    numbers = [ops.constant(n, DType.float32, device=DeviceRef.CPU()) for n in (divisor, eps)]
    out, scales = ops.custom(
        "torch_max_backend.quantize_rows",
        x.device,
        [rows, *numbers],
        kinds,
        {"activation": activation},
    )
    return reshape(out.tensor, x.shape), reshape(scales.tensor, [*x.shape[:-1], 1])
