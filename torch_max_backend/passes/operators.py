"""Operators that passes put in the place of several, with what they mean in eager PyTorch.

Background mode answers with these while MAX compiles; lowered graphs never call them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 64
"""Columns of a panel, as in kernels/contraction.mojo for all types that are multiplied whole."""

FEW_ROWS = 6
"""Fewer rows than these (ROWS in kernels/units.mojo) are dot products, weights read as they lie."""

_library = torch.library.Library("torch_max_backend", "FRAGMENT")
_library.define(
    "gated_linear(Tensor input, Tensor weight, Tensor bias, *, str activation, bool gates_first)"
    " -> Tensor"
)
_library.define(
    "linear_activation(Tensor input, Tensor weight, Tensor bias, *, str activation) -> Tensor"
)
_library.define(
    "mlp(Tensor input, Tensor? gain, Tensor? shift, float eps, Tensor weight, Tensor bias,"
    " Tensor out_weight, Tensor out_bias, Tensor? scale, *, str activation, bool centred,"
    " bool packed=False) -> Tensor"
)
_library.define("pack_gated_weight(Tensor weight, bool gates_first) -> Tensor")
_library.define("pack_weight(Tensor weight) -> Tensor")
_library.define(
    "packed_convolution(Tensor input, Tensor panels, Tensor? bias, int filters, int[] kernel,"
    " int[] stride, int[] padding, int[] dilation) -> Tensor"
)
_library.define(
    "packed_gated_linear(Tensor input, Tensor panels, Tensor bias, *, str activation,"
    " bool gates_first) -> Tensor"
)
_library.define(
    "packed_linear(Tensor input, Tensor panels, Tensor? bias, int features, *,"
    " str activation='none') -> Tensor"
)
_library.define("patch_embedding(Tensor input, Tensor weight, Tensor? bias) -> Tensor")
_library.define("quick_gelu(Tensor x) -> Tensor")
_library.define(
    "quantize_rows(Tensor x, float divisor, float eps, *, str activation='none')"
    " -> (Tensor, Tensor)"
)
_library.define("rotary_embedding(Tensor x, Tensor sin, Tensor cos, int first) -> Tensor")
_library.define(
    "self_attention(Tensor input, Tensor? gain, Tensor? shift, float eps, Tensor[] weights,"
    " Tensor[] biases, Tensor out_weight, Tensor out_bias, Tensor? scale, Tensor? sin, Tensor? cos,"
    " int first, *, int heads, float score_scale, bool is_causal, bool centred,"
    " bool packed=False) -> Tensor"
)
_library.define(
    "softmax_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale) -> Tensor"
)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: torch.ops.torch_max_backend.quick_gelu(x),
    "silu": F.silu,
    "squared_relu": lambda x: F.relu(x).square(),
}
"""What kernels/functions.mojo computes under these names."""


@torch.library.impl(_library, "gated_linear", "CompositeExplicitAutograd")
def gated_linear(
    input: Tensor, weight: Tensor, bias: Tensor, *, activation: str, gates_first: bool
) -> Tensor:
    """One half of the columns of a linear layer, over (M, K), (2 F, K), (2 F), times the activation
    of the other (Shazeer, 2020): (M, F)."""
    first, second = F.linear(input, weight, bias).chunk(2, -1)
    gates, gated = (first, second) if gates_first else (second, first)
    return _ACTIVATIONS[activation](gates) * gated


@torch.library.impl(_library, "linear_activation", "CompositeExplicitAutograd")
def linear_activation(input: Tensor, weight: Tensor, bias: Tensor, *, activation: str) -> Tensor:
    """The activation of a linear layer over (M, K), (N, K), (N)."""
    return _ACTIVATIONS[activation](F.linear(input, weight, bias))


@torch.library.impl(_library, "mlp", "CompositeExplicitAutograd")
def mlp(
    input: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    scale: Tensor | None,
    *,
    activation: str,
    centred: bool,
    packed: bool = False,
) -> Tensor:
    """The input (..., K) plus, times ``scale``, what two linear layers with an activation between
    them, (F, K), (F), (K, F), (K), make of its rows normalised, by their root mean square unless
    ``centred``. Packed weights are those of ``pack_weight``."""
    columns = input.shape[-1]
    if packed:
        weight = _unpacked(weight, (len(bias), columns))
        out_weight = _unpacked(out_weight, (columns, len(bias)))
    x = _normalized(input, gain, shift, eps, centred)
    hidden = linear_activation(x, weight, bias, activation=activation)
    return _added(input, F.linear(hidden, out_weight, out_bias), scale)


def _normalized(
    x: Tensor, gain: Tensor | None, shift: Tensor | None, eps: float, centred: bool
) -> Tensor:
    shape = x.shape[-1:]
    return F.layer_norm(x, shape, gain, shift, eps) if centred else F.rms_norm(x, shape, gain, eps)


def _added(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    return x + (branch if scale is None else branch * scale)


@torch.library.impl(_library, "pack_weight", "CompositeExplicitAutograd")
def pack_weight(weight: Tensor) -> Tensor:
    """(N, K), or filters (N, C, *kernel), as the panels that our products read: (panels, lines,
    columns, numbers of a unit), zeros where columns are missing. A unit is what 32 bits hold of a
    row, or of a filter's channels at one place."""
    group = 4 // weight.itemsize
    filters = weight.flatten(2).mT if weight.ndim > 2 else weight.unsqueeze(1)  # (N, places, C)
    padded = F.pad(filters, (0, -filters.shape[2] % group, 0, 0, 0, -len(weight) % PANEL))
    return padded.reshape(-1, PANEL, padded[0].numel() // group, group).transpose(1, 2).contiguous()


@torch.library.impl(_library, "pack_gated_weight", "CompositeExplicitAutograd")
def pack_gated_weight(weight: Tensor, gates_first: bool) -> Tensor:
    """``pack_weight`` for a gated layer: a panel has PANEL / 2 columns of what is gated, then their
    gates."""
    halves = weight.unflatten(0, (2, -1, PANEL // 2))
    gated_first = halves.flip(0) if gates_first else halves
    return pack_weight(gated_first.transpose(0, 1).reshape(weight.shape))


def _unpacked(panels: Tensor, shape: Sequence[int]) -> Tensor:
    """The weight of that shape."""
    n, channels, *kernel = shape
    rows = panels.transpose(1, 2).flatten(0, 1).flatten(1)
    filters = rows[:n].unflatten(1, (math.prod(kernel), -1))
    return filters[:, :, :channels].mT.reshape(shape)


@torch.library.impl(_library, "packed_convolution", "CompositeExplicitAutograd")
def packed_convolution(
    input: Tensor,
    panels: Tensor,
    bias: Tensor | None,
    filters: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """A convolution of (N, C, *size) by filters of ``pack_weight``, (filters, C, *kernel)."""
    weight = _unpacked(panels, (filters, input.shape[1], *kernel))
    return torch.convolution(
        input, weight, bias, stride, padding, dilation, False, [0] * len(kernel), 1
    )


@torch.library.impl(_library, "packed_gated_linear", "CompositeExplicitAutograd")
def packed_gated_linear(
    input: Tensor, panels: Tensor, bias: Tensor, *, activation: str, gates_first: bool
) -> Tensor:
    """As ``gated_linear``, with a weight of ``pack_gated_weight``."""
    weight = _unpacked(panels, (len(bias), input.shape[1]))
    halves = weight.unflatten(0, (-1, 2, PANEL // 2)).transpose(0, 1)
    weight = (halves.flip(0) if gates_first else halves).reshape(weight.shape)
    return gated_linear(input, weight, bias, activation=activation, gates_first=gates_first)


@torch.library.impl(_library, "packed_linear", "CompositeExplicitAutograd")
def packed_linear(
    input: Tensor, panels: Tensor, bias: Tensor | None, features: int, *, activation: str = "none"
) -> Tensor:
    """The activation of a linear layer over (M, K), a weight of ``pack_weight`` and (N); int32 for
    int8."""
    weight = _unpacked(panels, (features, input.shape[1]))
    if input.dtype == torch.int8:
        return torch._int_mm(input, weight.T)
    return _ACTIVATIONS[activation](F.linear(input, weight, bias))


@torch.library.impl(_library, "patch_embedding", "CompositeExplicitAutograd")
def patch_embedding(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, C, *size), (O, C, *patch), (O) to (N, patches, O) (Dosovitskiy et al., 2020)."""
    convolve = (F.conv1d, F.conv2d, F.conv3d)[input.ndim - 3]
    return convolve(input, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)


@torch.library.impl(_library, "quantize_rows", "CompositeExplicitAutograd")
def quantize_rows(
    x: Tensor, divisor: float, eps: float, *, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """int8 numbers and, for the last axis, their float32 scales: the largest magnitude over
    ``divisor`` in the dtype of x, at least ``eps``; of what the activation makes of x."""
    x = _ACTIVATIONS[activation](x)
    scale = (x.abs().amax(-1, keepdim=True) / divisor).clamp(eps).float()
    return (x * scale.reciprocal()).round().clamp(-128, 127).to(torch.int8), scale


@torch.library.impl(_library, "quick_gelu", "CompositeExplicitAutograd")
def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) (Hendrycks and Gimpel, 2016)."""
    return x * torch.sigmoid(x * 1.702)


@torch.library.impl(_library, "rotary_embedding", "CompositeExplicitAutograd")
def rotary_embedding(x: Tensor, sin: Tensor, cos: Tensor, first: int) -> Tensor:
    """The rows of (..., length, width) from ``first`` on, each pair (i, i + width / 2) rotated by
    the angle whose sine and cosine are given (Su et al., 2021); the others as they are. Laid out as
    x, or dense where rows are joined, as by whoever writes it out."""
    rows = x[..., first:, :].float()
    a, b = rows.chunk(2, -1)
    rotated = (rows * cos.float() + torch.cat([-b, a], -1) * sin.float()).to(x.dtype)
    return torch.cat([x[..., :first, :], rotated], -2) if first else rotated


@torch.library.impl(_library, "self_attention", "CompositeExplicitAutograd")
def self_attention(
    input: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    eps: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_weight: Tensor,
    out_bias: Tensor,
    scale: Tensor | None,
    sin: Tensor | None,
    cos: Tensor | None,
    first: int,
    *,
    heads: int,
    score_scale: float,
    is_causal: bool,
    centred: bool,
    packed: bool = False,
) -> Tensor:
    """The input (B, L, K) plus, times ``scale``, a linear layer, (K, K), (K), of attention among
    the rows of each batch, normalised as for ``mlp``. Their queries, keys and values are made by
    one linear layer, (3 K, K), (3 K), or one each, (K, K), (K); the first two are then rotated by
    the angles whose sines and cosines are given, if they are."""
    columns = input.shape[-1]
    if packed:
        shapes = [(len(bias), columns) for bias in (*biases, out_bias)]
        *weights, out_weight = map(_unpacked, (*weights, out_weight), shapes)
    x = _normalized(input, gain, shift, eps, centred)
    projected = F.linear(x, torch.cat(list(weights)), torch.cat(list(biases)))
    query, key, value = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if sin is not None and cos is not None:
        query, key = (rotary_embedding(rows, sin, cos, first) for rows in (query, key))
    attended = F.scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, scale=score_scale
    )
    rows = attended.transpose(1, 2).flatten(2)
    return _added(input, F.linear(rows, out_weight, out_bias), scale)


@torch.library.impl(_library, "softmax_attention", "CompositeExplicitAutograd")
def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """softmax(query key^T * scale + mask) value over (batch, heads, length, width); unlike
    scaled_dot_product_attention NaN where a row of the mask is -inf."""
    scores = query @ key.mT * scale
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1).to(value.dtype) @ value).to(query.dtype)


# Without these a fake tensor of an exported program fails in what the operators are composed of.


@torch.library.register_fake("torch_max_backend::quick_gelu")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("torch_max_backend::rotary_embedding")
def _(x: Tensor, sin: Tensor, cos: Tensor, first: int) -> Tensor:
    return x.new_empty(x.shape) if first else torch.empty_like(x)


@torch.library.register_fake("torch_max_backend::softmax_attention")
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return query.new_empty([*query.shape[:-1], value.shape[-1]])
