"""Multi-head attention as linear layers around one attention.

``nn.MultiheadAttention`` calls one function, which Dynamo does not look into; in eval mode without
gradients it and ``nn.TransformerEncoderLayer`` may call one operator each
(aten::_native_multi_head_attention, aten::_transformer_encoder_layer_fwd), for which PyTorch has no
decomposition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_max_backend.composites.attention import scaled_dot_product_attention

aten = torch.ops.aten


def encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """(N, L, E) through attention and MLP, each with a residual connection, the norm before it
    (``norm_first``) or after it."""

    def first_norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def second_norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    def attend(x: Tensor) -> Tensor:
        projection = (qkv_weight, qkv_bias, proj_weight, proj_bias)
        arguments = (embed_dim, num_heads, *projection, mask, False, True, mask_type)
        return multi_head_attention(x, x, x, *arguments)[0]

    def mlp(x: Tensor) -> Tensor:
        activation = F.gelu if use_gelu else F.relu
        return F.linear(activation(F.linear(x, ffn_weight_1, ffn_bias_1)), ffn_weight_2, ffn_bias_2)

    if norm_first:
        x = src + attend(first_norm(src))
        return x + mlp(second_norm(x))
    x = first_norm(src + attend(src))
    return second_norm(x + mlp(x))


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(N, L, E) queries, keys and values; the output and, if needed, the softmax's (N, L, L), or
    (N, heads, L, L) where they are not averaged over heads."""
    projected = _projected(query, key, value, qkv_weight, qkv_bias)
    q, k, v = (x.unflatten(-1, (num_head, -1)).transpose(1, 2) for x in projected)
    keep = None if mask is None else ~_hidden(mask, mask_type)
    out = scaled_dot_product_attention(q, k, v, keep)
    out = F.linear(out.transpose(1, 2).flatten(2), proj_weight, proj_bias)
    if not need_weights:
        return out, out.new_empty(0)
    scores = q @ k.mT * (embed_dim // num_head) ** -0.5
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    found = scores.softmax(-1)
    return out, found.mean(1) if average_attn_weights else found


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """torch.nn.functional.multi_head_attention_forward, for (L, N, E), with the attention kept
    whole; PyTorch's own where the weights are wanted, or dropped at random, or keys are added."""
    wanted = need_weights or (training and dropout_p > 0.0)
    added = add_zero_attn or any(x is not None for x in (bias_k, bias_v, static_k, static_v))
    if wanted or added or query.ndim != 3 or in_proj_weight is None or use_separate_proj_weight:
        return F.multi_head_attention_forward(
            query,
            key,
            value,
            embed_dim_to_check,
            num_heads,
            in_proj_weight,
            in_proj_bias,
            bias_k,
            bias_v,
            add_zero_attn,
            dropout_p,
            out_proj_weight,
            out_proj_bias,
            training,
            key_padding_mask,
            need_weights,
            attn_mask,
            use_separate_proj_weight,
            q_proj_weight,
            k_proj_weight,
            v_proj_weight,
            static_k,
            static_v,
            average_attn_weights,
            is_causal,
        )
    # as a module with batch_first calls it: the numbers of an image follow each other in memory
    batch_first = query.transpose(0, 1).is_contiguous()
    if batch_first:
        query, key, value = _transposed(query, key, value)
    projected = _projected(query, key, value, in_proj_weight, in_proj_bias)
    order = (0, 2, 1, 3) if batch_first else (1, 2, 0, 3)
    q, k, v = (x.unflatten(-1, (num_heads, -1)).permute(order) for x in projected)
    causal = is_causal and key_padding_mask is None
    mask = None if causal else attn_mask  # which says the same
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, num_heads))
    if key_padding_mask is not None:
        keys = key_padding_mask[:, None, None, :]
        mask = keys if mask is None else _joined(mask, keys, query.dtype)
    if mask is not None and mask.dtype == torch.bool:
        mask = ~mask
    out = scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    out = out.permute((0, 2, 1, 3) if batch_first else (2, 0, 1, 3)).flatten(2)
    out = F.linear(out, out_proj_weight, out_proj_bias)
    return out.transpose(0, 1).contiguous() if batch_first else out, None


def _transposed(query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
    """(N, L, E) of (L, N, E); what was one tensor is one again."""
    found = {id(x): x.transpose(0, 1) for x in (query, key, value)}
    return [found[id(x)] for x in (query, key, value)]


def _joined(one: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """Both masks; a bool one hides where it is True, any other is added to scores."""
    if one.dtype == other.dtype == torch.bool:
        return one | other
    added = [
        torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
        if mask.dtype == torch.bool
        else mask
        for mask in (one, other)
    ]
    return added[0] + added[1]


def _projected(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None
) -> Sequence[Tensor]:
    """Each times its third of the rows of ``weight``: one product where they are one tensor."""
    if query is key and key is value:
        return F.linear(query, weight, bias).chunk(3, -1)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return list(map(F.linear, (query, key, value), weight.chunk(3), biases))


def _hidden(mask: Tensor, mask_type: int | None) -> Tensor:
    """Where a mask that hides what is not zero is so, against (N, heads, L, L) scores: 0 is one of
    (L, L), 1 one of (N, L) keys, 2 a whole one."""
    hidden = mask if mask.dtype == torch.bool else mask != 0
    return hidden[:, None, None, :] if mask_type == 1 else hidden


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten._native_multi_head_attention.default: multi_head_attention,
    aten._transformer_encoder_layer_fwd.default: encoder_layer,
}
