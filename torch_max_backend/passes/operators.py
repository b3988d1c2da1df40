"""Operators that passes put in the place of several, with what they mean in eager PyTorch.

Background mode answers with these while MAX compiles; lowered graphs never call them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_library = torch.library.Library("torch_max_backend", "FRAGMENT")
_library.define(
    "linear_gelu(Tensor input, Tensor weight, Tensor bias, *, str approximate='none') -> Tensor"
)
_library.define("patch_embedding(Tensor input, Tensor weight, Tensor? bias) -> Tensor")
_library.define(
    "quantize_rows(Tensor x, float divisor, float eps, *, str activation='none')"
    " -> (Tensor, Tensor)"
)
_library.define(
    "softmax_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale) -> Tensor"
)


@torch.library.impl(_library, "linear_gelu", "CompositeExplicitAutograd")
def linear_gelu(
    input: Tensor, weight: Tensor, bias: Tensor, *, approximate: str = "none"
) -> Tensor:
    """GELU of a linear layer over (M, K), (N, K), (N)."""
    return F.gelu(F.linear(input, weight, bias), approximate=approximate)


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
    ``divisor`` in the dtype of x, at least ``eps``; after a GELU where ``activation`` is "gelu" or
    "gelu_tanh"."""
    if activation != "none":
        x = F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    scale = (x.abs().amax(-1, keepdim=True) / divisor).clamp(eps).float()
    return (x * scale.reciprocal()).round().clamp(-128, 127).to(torch.int8), scale


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
