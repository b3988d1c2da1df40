"""Task heads and their configurations.

A configuration names its sizes, None standing for the hidden size of the backbone, and makes the
module with ``instantiate(backbone_config, device=None, dtype=None)``; dtype None is the backbone's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from vit.attention import AttentivePool
from vit.dropout import Dropout
from vit.initialization import init_conv, init_linear
from vit.norm import NormType
from vit.yaml_tags import register_class

if TYPE_CHECKING:
    from vit.config import ViTConfig

Device = torch.device | str | None


class AnyHeadConfig(Protocol):
    """What `ViTConfig.heads` holds."""

    def instantiate(
        self, backbone_config: "ViTConfig", device: Device = None, dtype: torch.dtype | None = None
    ) -> nn.Module: ...


class Head(nn.Module):
    """dropout, linear: (..., in) -> (..., out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        dropout: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.proj = nn.Linear(in_features, out_features, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self, bias: float = 0.0) -> None:
        init_linear(self.proj)
        nn.init.constant_(self.proj.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.dropout(x))


class AttentivePoolHead(nn.Module):
    """Attentive pooling, then a Head: (B, L, in) -> (B, out), or (B, Q, out) for Q > 1 queries."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_attention_heads: int,
        num_queries: int = 1,
        hidden_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        bias: bool = True,
        norm_type: NormType = "rmsnorm",
        qk_normalization: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.pool = AttentivePool(
            in_features,
            num_attention_heads,
            num_queries,
            hidden_dropout,
            attention_dropout,
            bias,
            device=device,
            dtype=dtype,
            norm_type=norm_type,
            qk_normalization=qk_normalization,
        )
        self.proj = Head(in_features, out_features, dropout, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.pool(x))

    def forward_weights(self, x: Tensor) -> Tensor:
        """Attention weights of the pool: (B, H, Q, L)."""
        return self.pool.forward_weights(x)


class TransposedConv2dHead(nn.Module):
    """dropout, transposed convolution: (B, D, H, W) -> (B, out, H', W')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 4,
        stride: int = 2,
        padding: int = 1,
        output_padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        dropout: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.conv_transpose = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            dilation=dilation,
            device=device,
            dtype=dtype,
        )
        self.reset_parameters()

    def reset_parameters(self, bias: float = 0.0) -> None:
        init_conv(self.conv_transpose)
        assert self.conv_transpose.bias is not None
        nn.init.constant_(self.conv_transpose.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_transpose(self.dropout(x))


def _stage_channels(hidden: int | Sequence[int], num_stages: int) -> list[int]:
    """Channels between the stages; ValueError if a list has the wrong length."""
    required = num_stages - 1
    if isinstance(hidden, int):
        return [hidden] * required
    if len(hidden) < required:
        raise ValueError(
            f"hidden_channels has {len(hidden)} elements but "
            f"{num_stages} upsample stages require {required}"
        )
    if len(hidden) > required:
        raise ValueError(
            f"hidden_channels has {len(hidden)} elements but "
            f"{num_stages} upsample stages only need {required}"
        )
    return list(hidden)


class UpsampleHead(nn.Module):
    """Doubles the resolution per stage: (B, D, H, W) -> (B, out, 2^stages H, 2^stages W).

    A stage is a 2x2 transposed convolution of stride 2, then x + smooth(x), with smooth 3x3
    convolutions. GELU follows each but the very last, since that makes the output.
    ``hidden_channels`` are the channels between stages: one int, or stages - 1 of them (else
    ValueError); None = in_channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int | Sequence[int] | None = None,
        num_upsample_stages: int = 4,
        num_smooth_layers: int = 2,
        dropout: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if num_upsample_stages < 1:
            raise ValueError(f"num_upsample_stages must be positive, got {num_upsample_stages}")
        if num_smooth_layers < 0:
            raise ValueError(f"num_smooth_layers must not be negative, got {num_smooth_layers}")
        if hidden_channels is None:
            hidden_channels = in_channels
        hidden = _stage_channels(hidden_channels, num_upsample_stages)
        channels = [in_channels, *hidden, out_channels]
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_smooth_layers = num_smooth_layers
        self.dropout = Dropout(dropout)
        self.upsample_layers = nn.ModuleList(
            nn.ConvTranspose2d(channels[i], channels[i + 1], 2, stride=2, **factory)
            for i in range(num_upsample_stages)
        )
        smooth = [self._make_smooth(c, num_smooth_layers, factory) for c in channels[1:]]
        if num_smooth_layers > 0:
            del smooth[-1][-1]
        self.smooth_layers = nn.ModuleList(smooth)
        self.reset_parameters()

    @staticmethod
    def _make_smooth(channels: int, n: int, factory: dict[str, Any]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(n):
            layers += [nn.Conv2d(channels, channels, 3, padding=1, **factory), nn.GELU()]
        return nn.Sequential(*layers)

    def reset_parameters(self, bias: float = 0.0) -> None:
        """``bias`` is that of the last convolution, the others start at zero."""
        convs = [m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
        for conv in convs:
            init_conv(conv)
        assert convs[-1].bias is not None
        nn.init.constant_(convs[-1].bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x)  # (B, D, H, W)
        for upsample, smooth in zip(self.upsample_layers, self.smooth_layers, strict=True):
            x = upsample(x)  # (B, C_i, 2H, 2W)
            if self.num_smooth_layers > 0:
                x = x + smooth(x)  # (B, C_i, 2H, 2W)
        return x


@dataclass(frozen=True)
class HeadConfig:
    """Configuration of `Head`."""

    in_features: int | None = None
    out_features: int | None = None
    dropout: float = 0.0

    def instantiate(
        self, backbone_config: "ViTConfig", device: Device = None, dtype: torch.dtype | None = None
    ) -> Head:
        D = backbone_config.hidden_size
        return Head(
            D if self.in_features is None else self.in_features,
            D if self.out_features is None else self.out_features,
            self.dropout,
            device=device,
            dtype=dtype or backbone_config.dtype,
        )


@dataclass(frozen=True)
class AttentivePoolHeadConfig:
    """Configuration of `AttentivePoolHead`; bias, norm type and qk norm are the backbone's."""

    in_features: int | None = None
    out_features: int | None = None
    num_attention_heads: int | None = None
    num_queries: int = 1
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    dropout: float = 0.0

    def instantiate(
        self, backbone_config: "ViTConfig", device: Device = None, dtype: torch.dtype | None = None
    ) -> AttentivePoolHead:
        D = backbone_config.hidden_size
        return AttentivePoolHead(
            D if self.in_features is None else self.in_features,
            D if self.out_features is None else self.out_features,
            self.num_attention_heads or backbone_config.num_attention_heads,
            self.num_queries,
            self.hidden_dropout,
            self.attention_dropout,
            self.dropout,
            bias=backbone_config.attention_bias,
            norm_type=backbone_config.norm_type,
            qk_normalization=backbone_config.qk_normalization,
            device=device,
            dtype=dtype or backbone_config.dtype,
        )


@dataclass(frozen=True)
class TransposedConv2dHeadConfig:
    """Configuration of `TransposedConv2dHead`."""

    in_features: int | None = None
    out_features: int | None = None
    kernel_size: int = 4
    stride: int = 2
    padding: int = 1
    output_padding: int = 0
    dilation: int = 1
    groups: int = 1
    dropout: float = 0.0

    def instantiate(
        self, backbone_config: "ViTConfig", device: Device = None, dtype: torch.dtype | None = None
    ) -> TransposedConv2dHead:
        D = backbone_config.hidden_size
        return TransposedConv2dHead(
            D if self.in_features is None else self.in_features,
            D if self.out_features is None else self.out_features,
            self.kernel_size,
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
            self.groups,
            self.dropout,
            device=device,
            dtype=dtype or backbone_config.dtype,
        )


@dataclass(frozen=True)
class UpsampleHeadConfig:
    """Configuration of `UpsampleHead`."""

    in_features: int | None = None
    out_features: int | None = None
    hidden_features: int | Sequence[int] | None = None
    num_upsample_stages: int = 4
    num_smooth_layers: int = 2
    dropout: float = 0.0

    def instantiate(
        self, backbone_config: "ViTConfig", device: Device = None, dtype: torch.dtype | None = None
    ) -> UpsampleHead:
        D = backbone_config.hidden_size
        return UpsampleHead(
            D if self.in_features is None else self.in_features,
            D if self.out_features is None else self.out_features,
            D if self.hidden_features is None else self.hidden_features,
            self.num_upsample_stages,
            self.num_smooth_layers,
            self.dropout,
            device=device,
            dtype=dtype or backbone_config.dtype,
        )


HEAD_CONFIGS: tuple[type, ...] = (
    HeadConfig,
    AttentivePoolHeadConfig,
    TransposedConv2dHeadConfig,
    UpsampleHeadConfig,
)


def register_head_constructors() -> None:
    """Read the head configurations from YAML, tags ``python/object:vit.head.X`` and ``:vit.X``."""
    for cls in HEAD_CONFIGS:
        register_class(cls, ("vit.head", "vit"), cls)


register_head_constructors()
