"""Absolute position encodings: learnable and Fourier."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.dropout import Dropout
from vit.initialization import INIT_STD, init_linear, trunc_normal_

INTERPOLATION_MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}


def create_grid(
    dims: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    normalize: bool = True,
) -> Tensor:
    """Coordinates of the cells of an n-D grid, row-major: (1, L, n).

    Each axis runs from -1 to 1, or with ``normalize=False`` over 0, 1, 2, ...
    """
    # Not torch.linspace: it makes a symbolic size static.
    wide = torch.promote_types(dtype, torch.float32) if normalize else dtype
    axes = [torch.arange(dim, dtype=wide, device=device) for dim in dims]  # (dim,) each
    if normalize:
        axes = [2 * a / torch.sym_max(d - 1, 1) - 1 for a, d in zip(axes, dims, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (*dims, n)
    return grid.flatten(0, -2).unsqueeze(0).to(dtype)  # (1, L, n)


def resize_grid(grid: Tensor, size: Sequence[int], new_size: Sequence[int]) -> Tensor:
    """Interpolate values on a grid of ``size`` to ``new_size``: (L, D) -> (L', D)."""
    image = grid.T.unflatten(1, tuple(size)).unsqueeze(0)  # (1, D, *size)
    mode = INTERPOLATION_MODES[len(size)]
    image = F.interpolate(image, size=tuple(new_size), mode=mode)  # (1, D, *new_size)
    return image.flatten(2).squeeze(0).T  # (L', D)


def _fourier_features(grid: Tensor, w: Tensor) -> Tensor:
    """[sin(gW), cos(gW)] / sqrt(D/2): (1, L, n), (n, D/2) -> (1, L, D) (arXiv 2006.10739)."""
    phase = grid @ w  # (1, L, D/2)
    return torch.cat([phase.sin(), phase.cos()], dim=-1) / math.sqrt(w.shape[1])


def _is_size(dims: Sequence[int], size: Sequence[int]) -> bool:
    """Whether ``dims`` is ``size``; for symbolic dims False, without making them static.

    So one graph serves every size, the own one included: there the bicubic weights are 0 and 1.
    """
    if not torch.compiler.is_compiling():
        return tuple(dims) == tuple(size)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import

    return all(statically_known_true(a == b) for a, b in zip(dims, size, strict=True))


class LearnablePosition(nn.Module):
    """One learned vector per position (arXiv 2010.11929).

    ``positions`` (L, D) starts as random Fourier features of mean 0 and std 0.02, so that
    neighbours are alike, or with ``fourier_init=False`` as a truncated normal.
    """

    def __init__(
        self,
        hidden_size: int,
        spatial_size: Sequence[int],
        fourier_init: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.spatial_size = tuple(spatial_size)
        self.fourier_init = fourier_init
        self.positions = nn.Parameter(
            torch.empty(math.prod(self.spatial_size), hidden_size, device=device, dtype=dtype)
        )
        self.dropout = Dropout(dropout)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if not self.fourier_init:
            trunc_normal_(self.positions)
            return
        D, device = self.positions.shape[1], self.positions.device
        grid = create_grid(self.spatial_size, device=device)  # (1, L, n)
        w = torch.randn(grid.shape[-1], (D + 1) // 2, device=device)  # (n, ceil(D/2))
        features = _fourier_features(grid, w)[0, :, :D]  # (L, D)
        std = features.std(correction=0).clamp(min=1e-12)
        self.positions.copy_((features - features.mean()) / std * INIT_STD)

    @torch.no_grad()
    def expand_positions(self, size: Sequence[int]) -> None:
        """Replace the parameter by its interpolation on a grid of ``size``."""
        positions = resize_grid(self.positions, self.spatial_size, size).contiguous()  # (L', D)
        self.positions = nn.Parameter(positions, requires_grad=self.positions.requires_grad)
        self.spatial_size = tuple(size)

    def forward(self, dims: Sequence[int]) -> Tensor:
        """Positions of a grid of ``dims``, interpolated if it is another: (1, L', D)."""
        positions: Tensor = self.positions  # (L, D)
        if not _is_size(dims, self.spatial_size):
            positions = resize_grid(positions, self.spatial_size, dims)  # (L', D)
        return self.dropout(positions.unsqueeze(0))  # (1, L', D)

    def extra_repr(self) -> str:
        return f"spatial_size={self.spatial_size}, hidden_size={self.positions.shape[1]}"


class FourierPosition(nn.Module):
    """A learned linear map of learned Fourier features (arXiv 2106.02795).

    Raises ValueError for an odd ``hidden_size``.
    """

    def __init__(
        self,
        hidden_size: int,
        spatial_size: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if hidden_size % 2 != 0:
            raise ValueError(f"FourierPosition needs an even hidden_size, got {hidden_size}")
        self.spatial_size = tuple(spatial_size)
        self.w_fourier = nn.Parameter(
            torch.empty(len(self.spatial_size), hidden_size // 2, device=device, dtype=dtype)
        )
        self.w_fc1 = nn.Linear(hidden_size, hidden_size, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.w_fourier)
        init_linear(self.w_fc1)

    def forward(self, dims: Sequence[int]) -> Tensor:
        """Encodings of a grid of ``dims``: (1, L, D)."""
        # Neighbouring positions of a large grid coincide in half precision.
        dtype = torch.promote_types(self.w_fourier.dtype, torch.float32)
        grid = create_grid(dims, dtype=dtype, device=self.w_fourier.device)  # (1, L, n)
        features = _fourier_features(grid, self.w_fourier.to(dtype))  # (1, L, D)
        return self.w_fc1(features.to(self.w_fourier.dtype))  # (1, L, D)


# kind -> maker(hidden_size, spatial_size, device=, dtype=, ...)
POSITION_ENCODERS: dict[str, Callable[..., LearnablePosition | FourierPosition | None]] = {
    "fourier": FourierPosition,
    "learnable": partial(LearnablePosition, dropout=0.1),
    "none": lambda *args, **kw: None,
}


def create_position_encoder(
    kind: str, hidden_size: int, spatial_size: Sequence[int], **kw: Any
) -> LearnablePosition | FourierPosition | None:
    """The encoding added to the patch embeddings; None for "none".

    Raises ValueError for "rope", which acts in the attention (`vit.rope`), and for an unknown kind.
    """
    if kind not in POSITION_ENCODERS:
        hint = " (rope acts in the attention: use 'none' here)" if kind == "rope" else ""
        raise ValueError(
            f"Unknown position encoding: {kind!r}{hint}. Choose one of {list(POSITION_ENCODERS)}."
        )
    return POSITION_ENCODERS[kind](hidden_size, spatial_size, **kw)
