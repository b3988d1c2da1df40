"""Composite functions that must not reach AOTAutograd as PyTorch would decompose them.

AOTAutograd expands composite functions before a decomposition table is asked. Here they are
replaced in Dynamo's graph: attention and RMS normalisation by one custom operator each, so that
they arrive whole, and image resizing by two matrix products, a twentieth of the operators of
PyTorch's own decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

_LIBRARY = "torch_max_backend"
_HALF = (torch.float16, torch.bfloat16)


@torch.library.custom_op(f"{_LIBRARY}::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    enable_gqa: bool,
) -> Tensor:
    """softmax(query key^T * scale + mask) value over (..., heads, length, head_dim), no dropout."""
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return _attention_output(query, value).copy_(out)


@attention.register_fake
def _(query, key, value, attn_mask, is_causal, scale, enable_gqa):
    return _attention_output(query, value)


def _attention_output(query: Tensor, value: Tensor) -> Tensor:
    """Empty, in the layout that PyTorch's own attention gives its result: the query's."""
    same_width = query.shape[-1] == value.shape[-1]
    if query.ndim == 4 and same_width and query.stride(-1) == 1:
        return torch.empty_like(query)
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _attention_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, attn_mask, ctx.is_causal, ctx.scale, ctx.enable_gqa = inputs
    ctx.save_for_backward(query, key, value, attn_mask, output)


def _attention_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The gradient by recomputing the probabilities (Dao et al., 2022, without the tiling)."""
    query, key, value, mask, output = ctx.saved_tensors
    groups = query.shape[-3] // key.shape[-3] if ctx.enable_gqa else 1
    if groups > 1:
        key = key.repeat_interleave(groups, -3)
        value = value.repeat_interleave(groups, -3)
    scores = query @ key.mT * ctx.scale
    if ctx.is_causal:
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~keep, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1)
    if mask is not None:  # a row without a key attends to nothing
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    grad_value = weights.mT @ grad
    grad_weights = grad @ value.mT
    delta = (grad * output).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - delta)
    grad_query = grad_scores @ key * ctx.scale
    grad_key = grad_scores.mT @ query * ctx.scale
    if groups > 1:
        grad_key = grad_key.unflatten(-3, (-1, groups)).sum(-3)
        grad_value = grad_value.unflatten(-3, (-1, groups)).sum(-3)
    grad_mask = None
    if mask is not None and ctx.needs_input_grad[3]:
        grad_mask = grad_scores.sum_to_size(mask.shape)
    return (
        grad_query.sum_to_size(ctx.saved_tensors[0].shape),
        grad_key.sum_to_size(ctx.saved_tensors[1].shape),
        grad_value.sum_to_size(ctx.saved_tensors[2].shape),
        grad_mask,
        None,
        None,
        None,
    )


attention.register_autograd(_attention_backward, setup_context=_attention_setup)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention with the attention kept whole.

    With dropout the weights are needed one by one, so PyTorch's own decomposition is taken.
    """
    if dropout_p > 0.0 or not query.is_floating_point() or query.ndim < 3:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    lead = torch.broadcast_shapes(
        query.shape[:-3] if enable_gqa else query.shape[:-2],
        key.shape[:-3] if enable_gqa else key.shape[:-2],
    )
    if enable_gqa or query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        pass
    else:
        query = query.expand(*lead, *query.shape[-2:])
        key = key.expand(*lead, *key.shape[-2:])
        value = value.expand(*lead, *value.shape[-2:])
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1])
    return attention(query, key, value, attn_mask, is_causal, float(scale), enable_gqa)


@torch.library.custom_op(f"{_LIBRARY}::rms_norm", mutates_args=())
def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float
) -> Tensor:
    """input / rms(input) * weight over the trailing axes, computed in float32 for half."""
    return F.rms_norm(input, list(normalized_shape), weight, eps).contiguous()


@_rms_norm.register_fake
def _(input, normalized_shape, weight, eps):
    dtype = input.dtype if weight is None else torch.result_type(input, weight)
    return torch.empty(input.shape, dtype=dtype, device=input.device)


def _rms_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, ctx.normalized_shape, weight, ctx.eps = inputs
    ctx.save_for_backward(input, weight)


def _rms_norm_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight = ctx.saved_tensors
    wide = torch.float32 if input.dtype in _HALF else input.dtype
    axes = list(range(-len(ctx.normalized_shape), 0))
    x, g = input.to(wide), grad.to(wide)
    rstd = torch.rsqrt(x.square().mean(axes, keepdim=True) + ctx.eps)
    normalized = x * rstd
    scaled = g if weight is None else g * weight.to(wide)
    inner = (scaled * normalized).mean(axes, keepdim=True)
    grad_input = (rstd * (scaled - normalized * inner)).to(input.dtype)
    grad_weight = None
    if weight is not None:
        grad_weight = (g * normalized).sum_to_size(weight.shape).to(weight.dtype)
    return grad_input, None, grad_weight, None


_rms_norm.register_autograd(_rms_norm_backward, setup_context=_rms_norm_setup)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """torch.nn.functional.rms_norm kept whole.

    Without eps PyTorch takes the machine epsilon of the dtype it computes in.
    """
    if not input.is_floating_point():
        return F.rms_norm(input, list(normalized_shape), weight, eps)
    if eps is None:
        eps = torch.finfo(torch.float32 if input.dtype in _HALF else input.dtype).eps
    return _rms_norm(input, normalized_shape, weight, eps)


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """torch.nn.functional.interpolate; bilinear and bicubic resizing of (N, C, H, W) as matmuls.

    Both are linear and separable: out = R_h x R_w^T, with a banded matrix per axis (Keys, 1981,
    a = -0.75, or -0.5 with antialiasing as in Pillow).
    """
    if mode not in ("bilinear", "bicubic") or input.ndim != 4 or input.dtype == torch.uint8:
        return F.interpolate(
            input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        )
    spatial = input.shape[-2:]
    scales: Sequence[float | None] = (None, None)
    if size is not None:
        sizes: list[Any] = [size, size] if isinstance(size, int | torch.SymInt) else list(size)
    else:
        pair = scale_factor if isinstance(scale_factor, Sequence) else (scale_factor,) * 2
        sizes = [math.floor(n * s) for n, s in zip(spatial, pair, strict=True)]
        if not recompute_scale_factor:
            scales = pair
    wide = torch.float32 if input.dtype in _HALF else input.dtype
    rows, columns = (
        _resize_matrix(n, m, s, mode, bool(align_corners), antialias, wide, input.device)
        for n, m, s in zip(spatial, sizes, scales, strict=True)
    )
    return (rows @ input.to(wide) @ columns.mT).to(input.dtype)


def _resize_matrix(
    source: int,
    target: int,
    scale: float | None,
    mode: str,
    align_corners: bool,
    antialias: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """(target, source): row i holds the weights of the source samples of output sample i."""
    i = torch.arange(target, device=device).to(dtype).unsqueeze(-1)  # (target, 1)
    j = torch.arange(source, device=device).to(dtype)  # (source,)
    if align_corners:
        step = (source - 1) / (target - 1) if target > 1 else 0.0
        centre = i * step
    else:
        step = 1.0 / scale if scale else source / target
        centre = (i + 0.5) * step - 0.5
    if antialias:
        return _antialiased(i, j, step, mode)
    taps = (-1, 0, 1, 2) if mode == "bicubic" else (0, 1)
    if mode == "bilinear":
        centre = centre.clamp(min=0.0)
    base = centre.floor()
    matrix = torch.zeros((), dtype=dtype, device=device)
    for tap in taps:
        at = (base + tap).clamp(0, source - 1)  # samples beyond the border repeat it
        weight = _kernel((centre - base - tap).abs(), mode, -0.75)
        matrix = matrix + torch.where(j == at, weight, 0.0)
    return matrix


def _antialiased(i: Tensor, j: Tensor, step: float, mode: str) -> Tensor:
    """A kernel as wide as the step, cut at the border and normalised."""
    width = torch.sym_max(step, 1.0)  # unlike max, without a guard on which it is
    support = (2.0 if mode == "bicubic" else 1.0) * width
    centre = (i + 0.5) * step
    source = j.shape[0]
    first = (centre - support + 0.5).trunc().clamp(min=0)
    last = (centre + support + 0.5).trunc().clamp(max=source)
    weight = _kernel(((j - centre + 0.5) / width).abs(), mode, -0.5)
    weight = torch.where((j >= first) & (j < last), weight, 0.0)
    return weight / weight.sum(-1, keepdim=True)


def _kernel(x: Tensor, mode: str, a: float) -> Tensor:
    """The triangle or Keys' cubic at distance x >= 0."""
    if mode == "bilinear":
        return (1 - x).clamp(min=0.0)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


_REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.nn.functional.scaled_dot_product_attention: scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
    torch.nn.functional.interpolate: interpolate,
    torch.nn.functional.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    torch.ops.aten.rms_norm.default: rms_norm,
}


def replace_composites(gm: GraphModule) -> GraphModule:
    """Replaces the calls in Dynamo's graph and in the graphs nested in it; returns ``gm``."""
    for module in gm.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                _replace(node)
            module.recompile()
    return gm


def _replace(node: Node) -> None:
    replacement = _REPLACEMENTS.get(node.target) if node.op == "call_function" else None
    if replacement is not None:
        node.target = replacement
