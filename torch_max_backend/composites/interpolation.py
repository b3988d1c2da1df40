"""Image resizing by two matrix products, a twentieth of the operators of PyTorch's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


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
