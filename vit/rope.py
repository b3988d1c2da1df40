"""Rotary position embedding for 2-D grids.

RoPE is arXiv 2104.09864; the axial form for images with coordinates in [-1, 1] and its training
augmentations are those of DINOv3 (arXiv 2508.10104).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

RopeNormalization = Literal["min", "max", "separate"]

# (H, W) -> what the coordinates of each axis are divided by; sym_min and sym_max accept SymInts.
NORMALIZATIONS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "min": lambda H, W: (torch.sym_min(H, W), torch.sym_min(H, W)),
    "max": lambda H, W: (torch.sym_max(H, W), torch.sym_max(H, W)),
    "separate": lambda H, W: (H, W),
}


def rope_rotate_half(x: Tensor) -> Tensor:
    """(..., [a, b]) -> (..., [-b, a]), a and b the halves of the last dimension."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def rope_apply(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + Dh/2}) by its angle; shapes broadcast to (..., L, Dh)."""
    return x * cos + rope_rotate_half(x) * sin


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the last tokens of x: (B, H, T, Dh), rope: (2, L, Dh) or (2, B, 1, L, Dh), L <= T.

    The leading T - L tokens (cls, register) stay as they are. Computed in the rope's dtype,
    returned in that of x.
    """
    sin, cos = rope[0], rope[1]  # (..., L, Dh)
    prefix = x.shape[-2] - sin.shape[-2]
    if prefix < 0:
        raise ValueError(
            f"rope has {sin.shape[-2]} positions, x of shape {tuple(x.shape)} fewer tokens"
        )
    if prefix == 0:
        return rope_apply(x.to(sin.dtype), sin, cos).to(x.dtype)
    head, tail = x[..., :prefix, :], x[..., prefix:, :]  # (B, H, T - L, Dh), (B, H, L, Dh)
    return torch.cat([head, rope_apply(tail.to(sin.dtype), sin, cos).to(x.dtype)], dim=-2)


def pad_rope(rope: Tensor, num_prefix_tokens: int) -> Tensor:
    """Prepend the identity rotation for prefix tokens: (2, ..., L, Dh) -> (2, ..., P + L, Dh).

    Once per model, so that no layer has to split and join its queries and keys.
    """
    if num_prefix_tokens == 0:
        return rope
    sin, cos = rope[0], rope[1]  # (..., L, Dh)
    prefix = (*sin.shape[:-2], num_prefix_tokens, sin.shape[-1])  # (..., P, Dh)
    sin = torch.cat([sin.new_zeros(prefix), sin], dim=-2)  # (..., P + L, Dh)
    cos = torch.cat([cos.new_ones(prefix), cos], dim=-2)  # (..., P + L, Dh)
    return torch.stack([sin, cos])


class RopePositionEmbedding(nn.Module):
    """sin and cos of the angles of every position of an (H, W) grid.

    A head of size Dh has Dh / 4 periods per axis: ``base ** (2 i / (Dh / 2))``, or geometric from
    ``min_period`` to ``max_period``. In training mode the coordinates are shifted by U(-s, s) per
    axis (``shift_coords``), multiplied per axis (``jitter_coords``) and together
    (``rescale_coords``) by a factor that is log-uniform in [1 / f, f].

    Raises ValueError if embed_dim is not divisible by 4 * num_heads, unless either ``base`` or both
    periods are given, for an unknown ``normalize_coords`` and for factors that are not positive.
    """

    periods: Tensor

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int,
        base: float | None = 100.0,
        min_period: float | None = None,
        max_period: float | None = None,
        normalize_coords: RopeNormalization = "separate",
        shift_coords: float | None = None,
        jitter_coords: float | None = None,
        rescale_coords: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        if embed_dim % (4 * num_heads) != 0:
            raise ValueError(
                f"RoPE needs embed_dim divisible by 4 * num_heads, got {embed_dim} and {num_heads}"
            )
        both_periods = min_period is not None and max_period is not None
        any_period = min_period is not None or max_period is not None
        if both_periods == (base is not None) or any_period != both_periods:
            raise ValueError(
                "Give either base or both min_period and max_period, "
                f"got base={base}, min_period={min_period}, max_period={max_period}"
            )
        if normalize_coords not in NORMALIZATIONS:
            raise ValueError(
                f"normalize_coords must be one of {list(NORMALIZATIONS)}, got {normalize_coords!r}"
            )
        for name, factor in (("jitter_coords", jitter_coords), ("rescale_coords", rescale_coords)):
            if factor is not None and factor <= 0:
                raise ValueError(f"{name} must be positive, got {factor}")
        self.base = base
        self.min_period = min_period
        self.max_period = max_period
        self.head_dim = embed_dim // num_heads
        self.normalize_coords = normalize_coords
        self.shift_coords = shift_coords
        self.jitter_coords = jitter_coords
        self.rescale_coords = rescale_coords
        self.register_buffer("periods", torch.empty(self.head_dim // 4, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        n = self.head_dim // 4
        i = torch.arange(n, dtype=torch.float64, device=self.periods.device)  # (Dh/4,)
        if self.base is not None:
            periods = self.base ** (2 * i / (self.head_dim // 2))
        else:
            assert self.min_period is not None and self.max_period is not None
            periods = self.min_period * (self.max_period / self.min_period) ** (i / max(n - 1, 1))
        self.periods.copy_(periods)

    def _augment(self, coords: Tensor, rope_seed: int | None) -> Tensor:
        """Random shift, jitter and rescale, in this order: (L, 2) -> (L, 2)."""
        # A seeded draw is made on the CPU, to be the same on every device.
        seeded = rope_seed is not None
        generator = torch.Generator().manual_seed(rope_seed) if rope_seed is not None else None
        device = torch.device("cpu") if seeded else coords.device

        def uniform(n: int, limit: float) -> Tensor:  # (n,) in [-limit, limit]
            draw = torch.rand(n, generator=generator, dtype=coords.dtype, device=device)
            return ((2 * draw - 1) * limit).to(coords.device)

        if self.shift_coords is not None:
            coords = coords + uniform(2, self.shift_coords)
        if self.jitter_coords is not None:
            coords = coords * uniform(2, math.log(self.jitter_coords)).exp()
        if self.rescale_coords is not None:
            coords = coords * uniform(1, math.log(self.rescale_coords)).exp()
        return coords

    def forward(self, *, H: int, W: int, rope_seed: int | None = None) -> Tensor:
        """Stacked (sin, cos) of shape (2, H * W, Dh), in the dtype of the module.

        ``rope_seed`` repeats a training augmentation without touching torch's generator. A private
        generator cannot be traced: under fullgraph train with the default None.
        """
        # Angles of neighbouring patches would coincide in half precision.
        dtype = torch.promote_types(self.periods.dtype, torch.float32)
        periods = self.periods.to(dtype)  # (Dh/4,)
        size_h, size_w = NORMALIZATIONS[self.normalize_coords](H, W)
        h = (torch.arange(H, dtype=dtype, device=periods.device) + 0.5) / size_h  # (H,)
        w = (torch.arange(W, dtype=dtype, device=periods.device) + 0.5) / size_w  # (W,)
        grid = torch.stack(torch.meshgrid(h, w, indexing="ij"), dim=-1)  # (H, W, 2)
        coords = 2 * grid.flatten(0, 1) - 1  # (L, 2)
        if self.training:
            coords = self._augment(coords, rope_seed)
        # A literal: with dynamic=True, math.pi would become an input of the graph.
        angles = 6.283185307179586 * coords.unsqueeze(-1) / periods  # (L, 2, Dh/4)
        angles = angles.flatten(1)  # (L, Dh/2): the h part, then the w part
        angles = torch.cat([angles, angles], dim=-1)  # (L, Dh)
        return torch.stack([angles.sin(), angles.cos()]).to(self.periods.dtype)  # (2, L, Dh)
