"""Transformer layers: pre-norm attention and MLP branches around a residual stream.

The paper is arXiv 2010.11929. Every branch ends in a zero projection at the start, so that a fresh
layer is the identity, may be scaled (LayerScale), and in training may skip samples (stochastic
depth).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vit.attention import CrossAttention, SelfAttention
from vit.drop_path import _add_residual, _select_batch, _select_residual_subset, _select_rope
from vit.fused import NormMLP
from vit.initialization import zero_linear
from vit.layer_scale import LayerScale
from vit.norm import NormType


class _TransformerLayer(nn.Module):
    """The construction that the three layers share; they differ in their branches."""

    has_self_attention: bool
    has_cross_attention: bool

    def __init__(
        self,
        hidden_size: int,
        ffn_hidden_size: int,
        num_attention_heads: int,
        hidden_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        attention_bias: bool = True,
        mlp_bias: bool = True,
        activation: str = "gelu",
        drop_path_rate: float = 0.0,
        eps: float = 1e-5,
        layer_scale: float | None = None,
        glu_limit: float | None = None,
        glu_extra_bias: float | None = None,
        mlp_quantization_config: Any = None,
        qkv_quantization_config: Any = None,
        attn_quantization_config: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        norm_type: NormType = "rmsnorm",
        qk_normalization: bool = False,
    ):
        super().__init__()
        if not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")
        self.drop_path_rate = drop_path_rate

        def make_scale() -> nn.Module:
            if layer_scale is None:
                return nn.Identity()
            return LayerScale(hidden_size, layer_scale, device=device, dtype=dtype)

        def make_attention(kind: Callable[..., Any]) -> Any:
            return kind(
                hidden_size,
                num_attention_heads,
                hidden_dropout,
                attention_dropout,
                attention_bias,
                eps,
                device=device,
                dtype=dtype,
                norm_type=norm_type,
                qk_normalization=qk_normalization,
            )

        if self.has_self_attention:
            self.self_attention: SelfAttention = make_attention(SelfAttention)
            self.layer_scale_attn = make_scale()
        if self.has_cross_attention:
            self.cross_attention: CrossAttention = make_attention(CrossAttention)
            self.layer_scale_cross = make_scale()
        self.mlp = NormMLP(
            hidden_size,
            ffn_hidden_size,
            mlp_bias,
            activation,
            eps,
            hidden_dropout,
            glu_limit,
            glu_extra_bias,
            device=device,
            dtype=dtype,
            norm_type=norm_type,
        )
        self.layer_scale_mlp = make_scale()
        self._zero_branches()
        # Last: a quantised weight cannot be set to zero.
        self.apply_quantization(
            mlp_quantization_config, qkv_quantization_config, attn_quantization_config
        )

    def _zero_branches(self) -> None:
        for name, module in self.named_modules():
            if name.endswith(("out_proj", "fc2")):
                assert isinstance(module, nn.Linear)
                zero_linear(module)

    def reset_parameters(self) -> None:
        for child in self.children():
            if isinstance(child, (SelfAttention, CrossAttention, NormMLP, LayerScale)):
                child.reset_parameters()
        self._zero_branches()

    def apply_quantization(
        self,
        mlp_quantization_config: Any = None,
        qkv_quantization_config: Any = None,
        attn_quantization_config: Any = None,
    ) -> None:
        """Quantise the MLP, the input and the output projections of the attention with torchao."""
        self.mlp.apply_quantization(mlp_quantization_config)
        for child in self.children():
            if isinstance(child, (SelfAttention, CrossAttention)):
                child.apply_quantization(qkv_quantization_config, attn_quantization_config)

    def _self_attention(self, x: Tensor, rope: Tensor | None) -> Tensor:
        """x + self_attention(x): (B, L, D) -> (B, L, D)"""
        sub, keep, scale = _select_residual_subset(x, self.drop_path_rate, self.training)
        rope = _select_rope(rope, keep, x.shape[0])
        residual = self.layer_scale_attn(self.self_attention(sub, rope=rope))  # (kept, L, D)
        return _add_residual(x, residual, keep, scale)

    def _cross_attention(
        self, x: Tensor, kv: Tensor, rope_q: Tensor | None, rope_k: Tensor | None
    ) -> Tensor:
        """x + cross_attention(x, kv): (B, Lq, D), (B or 1, Lk, D) -> (B, Lq, D)"""
        B = x.shape[0]
        sub, keep, scale = _select_residual_subset(x, self.drop_path_rate, self.training)
        kv = _select_batch(kv, keep, B)
        rope_q, rope_k = _select_rope(rope_q, keep, B), _select_rope(rope_k, keep, B)
        residual = self.cross_attention(sub, kv, rope_q=rope_q, rope_k=rope_k)  # (kept, Lq, D)
        return _add_residual(x, self.layer_scale_cross(residual), keep, scale)

    def _mlp(self, x: Tensor) -> Tensor:
        """x + mlp(x): (B, L, D) -> (B, L, D)"""
        sub, keep, scale = _select_residual_subset(x, self.drop_path_rate, self.training)
        residual = self.layer_scale_mlp(self.mlp(sub))  # (kept, L, D)
        return _add_residual(x, residual, keep, scale)


class TransformerEncoderLayer(_TransformerLayer):
    """Self-attention, MLP: (B, L, D) -> (B, L, D)."""

    has_self_attention = True
    has_cross_attention = False

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        x = self._self_attention(x, rope)
        return self._mlp(x)


class TransformerDecoderLayer(_TransformerLayer):
    """Self-attention, cross-attention to kv, MLP: (B, Lq, D), (B or 1, Lk, D) -> (B, Lq, D)."""

    has_self_attention = True
    has_cross_attention = True

    def forward(
        self, x: Tensor, kv: Tensor, rope_q: Tensor | None = None, rope_k: Tensor | None = None
    ) -> Tensor:
        x = self._self_attention(x, rope_q)
        x = self._cross_attention(x, kv, rope_q, rope_k)
        return self._mlp(x)


class CrossAttentionTransformer(_TransformerLayer):
    """Cross-attention to kv, MLP: (B, Lq, D), (B or 1, Lk, D) -> (B, Lq, D)."""

    has_self_attention = False
    has_cross_attention = True

    def forward(
        self, x: Tensor, kv: Tensor, rope_q: Tensor | None = None, rope_k: Tensor | None = None
    ) -> Tensor:
        x = self._cross_attention(x, kv, rope_q, rope_k)
        return self._mlp(x)
