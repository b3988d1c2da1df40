"""Scaled dot-product attention as one operator, torch_max_backend::attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("torch_max_backend::attention", mutates_args=())
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
