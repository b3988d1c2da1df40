"""Multi-head attention with pre-norm (arXiv 1706.03762)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.dropout import Dropout
from vit.initialization import init_linear, trunc_normal_
from vit.norm import DEFAULT_EPS, NormType, make_norm
from vit.quantization import quantize_linears
from vit.rope import apply_rope


def _check_heads(hidden_size: int, num_attention_heads: int) -> None:
    if num_attention_heads < 1 or hidden_size % num_attention_heads != 0:
        raise ValueError(
            "hidden_size must be divisible by num_attention_heads, "
            f"got {hidden_size} and {num_attention_heads}"
        )


class _Attention(nn.Module):
    """What self- and cross-attention share: all but the projections of the input."""

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        hidden_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        bias: bool = True,
        eps: float = 1e-5,
        qkv_quantization_config: Any = None,
        out_quantization_config: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        norm_type: NormType = "rmsnorm",
        qk_normalization: bool = False,
    ):
        super().__init__()
        _check_heads(hidden_size, num_attention_heads)
        self.num_attention_heads = num_attention_heads
        self.head_dim = hidden_size // num_attention_heads
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        eps = eps or DEFAULT_EPS
        self.norm = make_norm(hidden_size, norm_type, eps, **factory)
        self._make_projections(hidden_size, bias, factory)
        self.q_norm = self.k_norm = None
        if qk_normalization:
            self.q_norm = make_norm(self.head_dim, norm_type, eps, **factory)
            self.k_norm = make_norm(self.head_dim, norm_type, eps, **factory)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias, **factory)
        self.attention_dropout = Dropout(attention_dropout)
        self.dropout = Dropout(hidden_dropout)
        self.reset_parameters()
        self.apply_quantization(qkv_quantization_config, out_quantization_config)

    input_projections: tuple[str, ...]

    def _make_projections(self, hidden_size: int, bias: bool, factory: dict[str, Any]) -> None:
        raise NotImplementedError

    def reset_parameters(self) -> None:
        for norm in (self.norm, self.q_norm, self.k_norm):
            if norm is not None:
                norm.reset_parameters()
        for name in (*self.input_projections, "out_proj"):
            init_linear(getattr(self, name))

    def apply_quantization(
        self, qkv_quantization_config: Any = None, out_quantization_config: Any = None
    ) -> None:
        """Quantise the projections with torchao; None leaves them as they are."""
        quantize_linears(self, qkv_quantization_config, self.input_projections)
        quantize_linears(self, out_quantization_config, ("out_proj",))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, Dh)"""
        return x.unflatten(-1, (self.num_attention_heads, self.head_dim)).transpose(1, 2)

    def _encode_positions(
        self, q: Tensor, k: Tensor, rope_q: Tensor | None, rope_k: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Optional norms over Dh, then optional rotations: (B, H, L, Dh) each."""
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope_q is not None:
            q = apply_rope(q, rope_q)
        if rope_k is not None:
            k = apply_rope(k, rope_k)
        return q, k

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
        """softmax(q k^T / sqrt(Dh)) v, then the output projection: -> (B, Lq, D)"""
        dropout = self.attention_dropout
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attn_mask,
            dropout_p=dropout.p if dropout.training else 0.0,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # (B, H, Lq, Dh)
        x = x.transpose(1, 2).flatten(2)  # (B, Lq, D)
        return self.dropout(self.out_proj(x))

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(Dh)): (B, H, Lq, Lk)"""
        return (q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(dim=-1)


class SelfAttention(_Attention):
    """norm, q k v projection, attention, output projection: (B, L, D) -> (B, L, D).

    ``attn_mask`` and its shapes are those of `torch.nn.functional.scaled_dot_product_attention`;
    ``rope`` is (2, L', Dh) or (2, B, 1, L', Dh), see `vit.rope.apply_rope`. Raises ValueError if
    hidden_size is not divisible by num_attention_heads.
    """

    input_projections = ("qkv_proj",)

    def _make_projections(self, hidden_size: int, bias: bool, factory: dict[str, Any]) -> None:
        self.qkv_proj = nn.Linear(hidden_size, 3 * hidden_size, bias, **factory)

    def _project(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) -> q, k, v, each (B, H, L, Dh)"""
        q, k, v = self.qkv_proj(self.norm(x)).chunk(3, dim=-1)  # (B, L, D) each
        q, k = self._encode_positions(self._split_heads(q), self._split_heads(k), rope, rope)
        return q, k, self._split_heads(v)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, rope: Tensor | None = None
    ) -> Tensor:
        return self._attend(*self._project(x, rope), attn_mask)

    @torch.no_grad()
    def forward_weights(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """Attention weights (B, H, L, L), without gradient."""
        q, k, _ = self._project(x, rope)
        return self._weights(q, k)


class CrossAttention(_Attention):
    """Like `SelfAttention`, queries (B, Lq, D) over keys and values (B, Lk, D) -> (B, Lq, D).

    The norm applies to the queries only: keys and values come normalised.
    """

    input_projections = ("q_proj", "kv_proj")

    def _make_projections(self, hidden_size: int, bias: bool, factory: dict[str, Any]) -> None:
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias, **factory)
        self.kv_proj = nn.Linear(hidden_size, 2 * hidden_size, bias, **factory)

    def _project(
        self, q: Tensor, kv: Tensor, rope_q: Tensor | None, rope_k: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, Lq, D), (B, Lk, D) -> q (B, H, Lq, Dh), k and v (B, H, Lk, Dh)"""
        q = self._split_heads(self.q_proj(self.norm(q)))
        k, v = self.kv_proj(kv).chunk(2, dim=-1)  # (B, Lk, D) each
        q, k = self._encode_positions(q, self._split_heads(k), rope_q, rope_k)
        return q, k, self._split_heads(v)

    def forward(
        self,
        q: Tensor,
        kv: Tensor,
        attn_mask: Tensor | None = None,
        rope_q: Tensor | None = None,
        rope_k: Tensor | None = None,
    ) -> Tensor:
        return self._attend(*self._project(q, kv, rope_q, rope_k), attn_mask)

    @torch.no_grad()
    def forward_weights(
        self, q: Tensor, kv: Tensor, rope_q: Tensor | None = None, rope_k: Tensor | None = None
    ) -> Tensor:
        """Attention weights (B, H, Lq, Lk), without gradient."""
        q, k, _ = self._project(q, kv, rope_q, rope_k)
        return self._weights(q, k)


class AttentivePool(nn.Module):
    """Pooling by learned queries (Set Transformer, arXiv 1810.00825): (B, L, D) -> (B, D) or (B, Q,
    D).

    The queries attend to the tokens; one query gives (B, D). Raises ValueError if hidden_size is
    not divisible by num_attention_heads or num_queries is not positive.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        num_queries: int = 1,
        hidden_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        norm_type: NormType = "rmsnorm",
        qk_normalization: bool = False,
    ):
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be positive, got {num_queries}")
        self.num_queries = num_queries
        query = torch.empty(1, num_queries, hidden_size, device=device, dtype=dtype)  # (1, Q, D)
        self.query = nn.Parameter(query)
        self.cross_attention = CrossAttention(
            hidden_size,
            num_attention_heads,
            hidden_dropout,
            attention_dropout,
            bias,
            device=device,
            dtype=dtype,
            norm_type=norm_type,
            qk_normalization=qk_normalization,
        )
        trunc_normal_(self.query)

    def reset_parameters(self) -> None:
        trunc_normal_(self.query)
        self.cross_attention.reset_parameters()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        query = self.query.expand(x.shape[0], -1, -1)  # (B, Q, D)
        x = self.cross_attention(query, x, attn_mask)  # (B, Q, D)
        return x.squeeze(1) if self.num_queries == 1 else x

    @torch.no_grad()
    def forward_weights(self, x: Tensor) -> Tensor:
        """Attention weights (B, H, Q, L), without gradient."""
        return self.cross_attention.forward_weights(self.query.expand(x.shape[0], -1, -1), x)
