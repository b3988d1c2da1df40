"""The two halves of a transformer's block as our CPU kernels have them, each with its norm and its
residual connection; float32 or bfloat16, rounded where a step hands its result to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from max.dtype import DType
from max.graph import DeviceRef, TensorType, TensorValue, ops

from torch_max_backend.context import Rotation
from torch_max_backend.dims import IntLike, dim_value
from torch_max_backend.ops.cpu_attention import angles
from torch_max_backend.ops.normalization import as_rows, epsilon, factors
from torch_max_backend.ops.shape import agree, reshape

Layers = Sequence[tuple[TensorValue, TensorValue]]
"""Weights (N, K), or in panels, and biases (N)."""


@dataclass(frozen=True)
class Norm:
    """A normalisation of rows, by their root mean square unless ``centred``."""

    gain: TensorValue | None
    shift: TensorValue | None
    eps: float
    centred: bool

    def operands(self, x: TensorValue) -> list[TensorValue]:
        return [factors(self.gain, x, 1.0), factors(self.shift, x, 0.0), epsilon(self.eps)]


def mlp(
    x: TensorValue,
    norm: Norm,
    layers: Layers,
    scale: TensorValue | None,
    activation: str,
    packed: bool,
) -> TensorValue:
    """x (..., K) plus, times ``scale``, two linear layers with an activation between them of its
    rows normalised."""
    rows = as_rows(x, [x.shape[-1]])
    hidden = layers[0][1].shape[0]
    operands = [
        *norm.operands(x),
        *_operands(layers[:1], x.shape[-1], packed),
        *_operands(layers[1:], hidden, packed),
        factors(scale, x, 1.0),
    ]
    parameters: dict[str, bool | str] = {
        "activation": activation,
        "centred": norm.centred,
        "scaled": scale is not None,
        "packed": packed,
    }
    return reshape(_kernel("mlp", rows, operands, [hidden], parameters), list(x.shape))


def self_attention(
    x: TensorValue,
    norm: Norm,
    layers: Layers,
    scale: TensorValue | None,
    rotation: Rotation | None,
    heads: int,
    score_scale: float,
    causal: bool,
    packed: bool,
) -> TensorValue:
    """x (B, L, K) plus, times ``scale``, the last of the layers over attention among the rows of
    each batch, normalised; the others make queries, keys and values, of which the first two may be
    rotated."""
    batch, _, columns = x.shape
    rows = as_rows(x, [columns])
    *projections, last = layers
    joined = len(projections) == 1
    nothing = rows
    operands = [
        *norm.operands(x),
        *_operands(projections * 3 if joined else projections, columns, packed),
        *_operands([last], columns, packed),
        factors(scale, x, 1.0),
        *(angles(rotation, [batch, heads]) if rotation else [nothing, nothing, dim_value(0)]),
        dim_value(batch),
        dim_value(heads),
        ops.constant(score_scale, DType.float32, device=DeviceRef.CPU()),
        dim_value(int(causal)),
    ]
    parameters = {
        "centred": norm.centred,
        "scaled": scale is not None,
        "packed": packed,
        "joined": joined,
        "rotated": rotation is not None,
    }
    kept = [columns * 3, columns]
    return reshape(_kernel("self_attention", rows, operands, kept, parameters), list(x.shape))


def _operands(layers: Layers, depth: IntLike, packed: bool) -> list[TensorValue]:
    operands = []
    for weight, bias in layers:
        operands += [weight if packed else agree(weight, [bias.shape[0], depth]), bias]
    return operands


def _kernel(
    name: str,
    rows: TensorValue,
    operands: Sequence[TensorValue],
    kept: Sequence[IntLike],
    parameters: Mapping[str, bool | str],
) -> TensorValue:
    """The result, like ``rows``; the kernel has room for the columns that its steps keep."""
    room = [TensorType(rows.dtype, [rows.shape[0], columns], rows.device) for columns in kept]
    out, *_ = ops.custom(
        f"torch_max_backend.{name}",
        rows.device,
        [rows, *operands],
        [rows.type, *room],
        {**parameters},
    )
    return out.tensor
