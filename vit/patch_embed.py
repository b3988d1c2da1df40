"""Patch embedding: an image or volume to a sequence of tokens (arXiv 2010.11929)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit.initialization import init_conv
from vit.pos_enc import create_position_encoder


class _PatchEmbed(nn.Module):
    """A convolution with kernel = stride = patch, plus an optional position encoding."""

    conv: Any
    num_dims: int

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        patch_size: Sequence[int],
        img_size: Sequence[int],
        pos_enc: str = "fourier",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self._check_size("patch_size", patch_size)
        self._check_size("img_size", img_size)
        self.patch_size = tuple(patch_size)
        self.patch = self.conv(
            in_channels, hidden_size, self.patch_size, self.patch_size, device=device, dtype=dtype
        )
        self.pos_enc = create_position_encoder(
            pos_enc, hidden_size, self.tokenized_size(img_size), device=device, dtype=dtype
        )
        init_conv(self.patch)

    def reset_parameters(self) -> None:
        init_conv(self.patch)
        if self.pos_enc is not None:
            self.pos_enc.reset_parameters()

    def _check_size(self, name: str, size: Sequence[int]) -> None:
        if len(size) != self.num_dims:
            raise ValueError(
                f"{type(self).__name__} needs a {name} of {self.num_dims} ints, got {tuple(size)}"
            )

    def tokenized_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Grid of patches of an image of ``size``; what does not fill a patch is dropped."""
        self._check_size("size", size)
        return tuple(s // p for s, p in zip(size, self.patch_size, strict=True))

    def original_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Size of the image that has a grid of ``size`` patches."""
        self._check_size("size", size)
        return tuple(s * p for s, p in zip(size, self.patch_size, strict=True))

    def spatial_size(self, x: Tensor) -> tuple[int, ...]:
        """Size of the images (B, C, *size). Raises ValueError for another number of dimensions."""
        if x.ndim != 2 + self.num_dims:
            raise ValueError(
                f"{type(self).__name__} takes (B, C) and {self.num_dims} spatial dimensions, "
                f"got shape {tuple(x.shape)}"
            )
        return tuple(x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *img_size) -> (B, L, D). Raises ValueError for another number of dimensions."""
        dims = self.tokenized_size(self.spatial_size(x))
        x = self.patch(x)  # (B, D, *dims)
        x = x.flatten(2).transpose(1, 2)  # (B, L, D)
        if self.pos_enc is not None:
            x = x + self.pos_enc(dims)  # (B, L, D) + (1, L, D)
        return x


class PatchEmbed2d(_PatchEmbed):
    """(B, C, H, W) -> (B, L, D), L = (H // patch_h) * (W // patch_w)."""

    conv = nn.Conv2d
    num_dims = 2


class PatchEmbed3d(_PatchEmbed):
    """(B, C, D, H, W) -> (B, L, hidden), patches in the order depth, height, width."""

    conv = nn.Conv3d
    num_dims = 3
