"""The Vision Transformer (arXiv 2010.11929), with the options of its successors."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.checkpoint import checkpoint

from torch_max_backend.garbage import imported
from vit.config import ViTConfig, register_vit_constructors
from vit.features import ViTFeatures
from vit.initialization import trunc_normal_
from vit.norm import make_norm
from vit.patch_embed import PatchEmbed2d, PatchEmbed3d
from vit.rope import RopePositionEmbedding, pad_rope
from vit.tokens import check_mask, create_mask, kept_indices, take_tokens
from vit.transformer import (
    CrossAttentionTransformer,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)

imported("torch._dynamo")  # torch.compiler's decorators need it: 0.4 s less without collections

__all__ = ["ViT", "ViTConfig", "ViTFeatures", "register_vit_constructors"]

Device = torch.device | str | None
PATCH_EMBEDS: dict[int, type[PatchEmbed2d] | type[PatchEmbed3d]] = {
    2: PatchEmbed2d,
    3: PatchEmbed3d,
}


def _set_requires_grad(parameters: Iterable[nn.Parameter], value: bool) -> None:
    for p in parameters:
        # Empty prefix tokens never train, integer (quantised) weights cannot.
        if p.numel() > 0 and p.is_floating_point():
            p.requires_grad_(value)


def _run_block(block: nn.Module, x: Tensor, rope: Tensor | None) -> Tensor:
    return block(x, rope)


@torch.compiler.assume_constant_result  # traced, the parameters of a ViT take Dynamo seconds
def _have_plain_weights(blocks: nn.ModuleList) -> bool:
    """Whether no weight is a tensor of quantised numbers; guards on the weights see a change."""
    return all(type(p) is nn.Parameter for p in blocks.parameters())


_run_repeated_block = torch.compiler.nested_compile_region(_run_block, max_reuse_entries=1000)


class ViT(nn.Module):
    """Images (B, C, H, W) or volumes (B, C, D, H, W) to `ViTFeatures`, tokens of size D.

    The quantisation configurations are torchao's, for the MLPs, the input and the output
    projections of the attention. Every parameter and buffer has ``config.dtype`` and the given
    device.
    """

    def __init__(
        self,
        config: ViTConfig,
        mlp_quantization_config: Any = None,
        qkv_quantization_config: Any = None,
        attn_quantization_config: Any = None,
        device: Device = None,
    ):
        super().__init__()
        self._config = config
        D = config.hidden_size
        factory: dict[str, Any] = {"device": device, "dtype": config.dtype}

        self.stem = PATCH_EMBEDS[len(config.patch_size)](
            config.in_channels,
            D,
            config.patch_size,
            config.img_size,
            pos_enc="none" if config.pos_enc == "rope" else config.pos_enc,
            **factory,
        )
        self.patch_embed_norm = (
            make_norm(D, config.norm_type, **factory) if config.patch_embed_normalization else None
        )
        self.rope = (
            RopePositionEmbedding(
                D,
                num_heads=config.num_attention_heads,
                base=config.rope_base,
                normalize_coords=config.rope_normalize_coords,
                shift_coords=config.rope_shift_coords,
                jitter_coords=config.rope_jitter_coords,
                rescale_coords=config.rope_rescale_coords,
                **factory,
            )
            if config.pos_enc == "rope"
            else None
        )
        self.register_tokens = self._make_tokens(config.num_register_tokens, factory)
        self.cls_tokens = self._make_tokens(config.num_cls_tokens, factory)
        self.blocks: Any = nn.ModuleList(
            self.create_encoder_layer(
                mlp_quantization_config,
                qkv_quantization_config,
                attn_quantization_config,
                device=device,
            )
            for _ in range(config.depth)
        )
        self.output_norm = make_norm(D, config.norm_type, **factory)
        self.heads = nn.ModuleDict(
            {
                name: self.create_head(name, head_config, device=device, dtype=config.dtype)
                for name, head_config in config.heads.items()
            }
        )
        if not config.mlp_requires_grad:
            self.mlp_requires_grad_(False)
        if not config.self_attention_requires_grad:
            self.self_attention_requires_grad_(False)

    def _make_tokens(self, n: int, factory: dict[str, Any]) -> nn.Parameter:
        tokens = torch.empty(1, n, self.config.hidden_size, **factory)  # (1, n, D)
        if n > 0:
            trunc_normal_(tokens)
        return nn.Parameter(tokens, requires_grad=n > 0)

    @property
    def config(self) -> ViTConfig:
        return self._config

    def get_block(self, i: int) -> TransformerEncoderLayer:
        return self.blocks[i]

    def get_head(self, name: str) -> nn.Module:
        """Raises KeyError for an unknown name."""
        if name not in self.heads:
            raise KeyError(f"No head named {name!r}, there are {sorted(self.heads)}")
        return self.heads[name]

    # Parts, to be called or overridden by subclasses

    def create_head(
        self,
        name: str,
        head_config: Any,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        return head_config.instantiate(self.config, device=device, dtype=dtype or self.config.dtype)

    def _create_layer(
        self, kind: Any, mlp: Any, qkv: Any, attn: Any, device: Device, dtype: torch.dtype | None
    ) -> Any:
        c = self.config
        return kind(
            c.hidden_size,
            c.ffn_hidden_size,
            c.num_attention_heads,
            c.hidden_dropout,
            c.attention_dropout,
            c.attention_bias,
            c.mlp_bias,
            c.activation,
            c.drop_path_rate,
            layer_scale=c.layer_scale,
            glu_limit=c.glu_limit,
            glu_extra_bias=c.glu_extra_bias,
            mlp_quantization_config=mlp,
            qkv_quantization_config=qkv,
            attn_quantization_config=attn,
            device=device,
            dtype=dtype or c.dtype,
            norm_type=c.norm_type,
            qk_normalization=c.qk_normalization,
        )

    def create_encoder_layer(
        self,
        mlp_quantization_config: Any = None,
        qkv_quantization_config: Any = None,
        attn_quantization_config: Any = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> TransformerEncoderLayer:
        mlp, qkv, attn = mlp_quantization_config, qkv_quantization_config, attn_quantization_config
        return self._create_layer(TransformerEncoderLayer, mlp, qkv, attn, device, dtype)

    def create_decoder_layer(
        self,
        mlp_quantization_config: Any = None,
        qkv_quantization_config: Any = None,
        attn_quantization_config: Any = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> TransformerDecoderLayer:
        mlp, qkv, attn = mlp_quantization_config, qkv_quantization_config, attn_quantization_config
        return self._create_layer(TransformerDecoderLayer, mlp, qkv, attn, device, dtype)

    def create_cross_attention_layer(
        self,
        mlp_quantization_config: Any = None,
        qkv_quantization_config: Any = None,
        attn_quantization_config: Any = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> CrossAttentionTransformer:
        mlp, qkv, attn = mlp_quantization_config, qkv_quantization_config, attn_quantization_config
        return self._create_layer(CrossAttentionTransformer, mlp, qkv, attn, device, dtype)

    # Forward

    def create_mask(
        self, input: Tensor, unmasked_ratio: float, scale: int, roll: bool = False
    ) -> Tensor:
        """Random mask of the tokens of ``input`` by `tokens.create_mask`: bool (B, L)."""
        size = self.stem.tokenized_size(self.stem.spatial_size(input))
        return create_mask(
            size, 1 - unmasked_ratio, input.shape[0], scale, roll, device=input.device
        )

    def normalize_patch_embeddings(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)"""
        return x if self.patch_embed_norm is None else self.patch_embed_norm(x)

    def add_prefix_tokens(self, x: Tensor) -> Tensor:
        """Prepend cls, then register tokens: (B, L, D) -> (B, T, D)."""
        prefix = [p for p in (self.cls_tokens, self.register_tokens) if p.shape[1] > 0]
        if not prefix:
            return x
        B = x.shape[0]
        return torch.cat([*(p.expand(B, -1, -1) for p in prefix), x], dim=1)

    def prepare_rope(
        self,
        tokenized_size: tuple[int, ...],
        mask: Tensor | None = None,
        rope_seed: int | None = None,
    ) -> Tensor:
        """Stacked (sin, cos) of a grid: (2, L, Dh), with a mask (B, L) those kept: (2, B, 1, L',
        Dh).

        Raises ValueError if the model has no rope, or for a grid that is not 2-D.
        """
        rope = self._grid_rope(tokenized_size, rope_seed)  # (2, L, Dh)
        return rope if mask is None else self._take_rope(rope, kept_indices(mask))

    def _grid_rope(self, tokenized_size: tuple[int, ...], rope_seed: int | None) -> Tensor:
        if self.rope is None:
            raise ValueError(f"The model has no RoPE: its pos_enc is {self.config.pos_enc!r}")
        if len(tokenized_size) != 2:
            raise ValueError(f"RoPE not supported for non-2D input, got the grid {tokenized_size}")
        H, W = tokenized_size
        return self.rope(H=H, W=W, rope_seed=rope_seed)

    @staticmethod
    def _take_rope(rope: Tensor, indices: Tensor) -> Tensor:
        """(2, L, Dh), (B, L') -> (2, B, 1, L', Dh)"""
        return rope[:, indices].unsqueeze(2)

    def _check_dtype(self, x: Tensor) -> None:
        dtype = self.stem.patch.weight.dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"The model has {dtype} weights, the input is {x.dtype}: "
                "cast the input, or run under torch.autocast"
            )

    def _embed(
        self, x: Tensor, mask: Tensor | None, rope_seed: int | None
    ) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
        """Tokens (B, T, D) for the blocks, their rope (2, ..., T, Dh), the grid of patches."""
        self._check_dtype(x)
        dims = self.stem.tokenized_size(self.stem.spatial_size(x))
        x = self.normalize_patch_embeddings(self.stem(x))  # (B, L, D)
        rope = None if self.rope is None else self._grid_rope(dims, rope_seed)  # (2, L, Dh)
        if mask is not None:
            check_mask(mask, x)
            kept = kept_indices(mask)  # (B, L')
            x = take_tokens(x, kept)  # (B, L', D)
            rope = None if rope is None else self._take_rope(rope, kept)  # (2, B, 1, L', Dh)
        x = self.add_prefix_tokens(x)  # (B, T, D)
        if rope is not None:
            rope = pad_rope(rope, self.cls_tokens.shape[1] + self.register_tokens.shape[1])
        return x, rope, dims

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rope_seed: int | None = None,
        output_norm: bool = True,
    ) -> ViTFeatures:
        """(B, C, *img_size) -> features of T = n_cls + n_register + L tokens.

        ``mask`` (B, L) bool drops the visual tokens where it is False, the same number in each row
        (checked in eager only); the result then has no grid. Tracing a mask as one graph needs
        ``torch._dynamo.config.capture_dynamic_output_shape_ops = True``. ``rope_seed`` repeats the
        augmentation of the coordinates in training. Raises ValueError for an input of another dtype
        than the weights outside autocast, of another rank, and for a mask that does not fit.
        """
        x, rope, dims = self._embed(x, mask, rope_seed)  # (B, T, D)
        repeats = self._repeats_blocks()
        for block in self.blocks:
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, rope, use_reentrant=False)
            elif repeats:
                x = _run_repeated_block(block, x, rope)
            else:
                x = block(x, rope)  # (B, T, D)
        if output_norm:
            x = self.output_norm(x)
        return ViTFeatures(
            x,
            self.register_tokens.shape[1],
            self.cls_tokens.shape[1],
            tokenized_size=dims if mask is None else None,
        )

    def _repeats_blocks(self) -> bool:
        """Whether torch.compile may trace one block for all: they differ in weights alone.

        In training their rates of stochastic depth differ; other runtimes cannot read a nested
        region in an exported program; PyTorch 2.13 has none for the tensors of quantised weights.
        """
        tracing = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
        if not tracing or self.training or torch.is_grad_enabled():
            return False
        return _have_plain_weights(self.blocks)

    def default_dynamic_shapes(self) -> tuple[dict[int, Dim]]:
        """For ``torch.export`` of ``forward(x)``: a batch of 1 to 32."""
        return ({0: Dim("batch", min=1, max=32)},)

    @torch.no_grad()
    def forward_attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Attention of every token to the visual tokens: {"layer_0": (B, H, T, *grid), ...}.

        The weights to cls and register tokens are left out, so that a grid sums to at most 1.
        """
        x, rope, dims = self._embed(x, None, None)  # (B, T, D)
        prefix = self.cls_tokens.shape[1] + self.register_tokens.shape[1]
        weights: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            w = block.self_attention.forward_weights(x, rope=rope)  # (B, H, T, T)
            weights[f"layer_{i}"] = w[..., prefix:].unflatten(-1, dims)  # (B, H, T, *grid)
            x = block(x, rope)
        return weights

    # Freezing and quantisation

    def mlp_requires_grad_(self, requires_grad: bool = True) -> None:
        for block in self.blocks:
            _set_requires_grad(block.mlp.parameters(), requires_grad)

    def self_attention_requires_grad_(self, requires_grad: bool = True) -> None:
        for block in self.blocks:
            _set_requires_grad(block.self_attention.parameters(), requires_grad)

    def backbone_requires_grad_(self, requires_grad: bool = True) -> None:
        """All parameters but those of the heads."""
        parameters = self.named_parameters()
        _set_requires_grad((p for n, p in parameters if not n.startswith("heads.")), requires_grad)

    def apply_quantization(
        self,
        mlp_quantization_config: Any = None,
        qkv_quantization_config: Any = None,
        attn_quantization_config: Any = None,
    ) -> None:
        """Quantise the Linear modules of the blocks in place; ImportError without torchao."""
        for block in self.blocks:
            block.apply_quantization(
                mlp_quantization_config, qkv_quantization_config, attn_quantization_config
            )
