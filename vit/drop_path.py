"""Stochastic depth (arXiv 1603.09382), per sample.

`drop_path` zeroes the residual of a sample. The helpers below it do what DINOv2 describes (arXiv
2304.07193, section 5): the branch does not run at all for the samples that are dropped.
"""

import torch
from torch import Tensor, nn


def drop_path(x: Tensor, drop_prob: float, training: bool) -> Tensor:
    """Zero samples of (B, ...) with probability ``drop_prob``, scale the others by 1 / keep."""
    if drop_prob == 0.0 or not training:
        return x
    keep_prob = 1.0 - drop_prob
    if keep_prob == 0.0:
        return torch.zeros_like(x)
    keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)  # (B, 1, ...)
    return x * keep.div_(keep_prob)


class DropPath(nn.Module):
    """Module form of `drop_path`. Raises ValueError for a probability outside [0, 1]."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        if not 0.0 <= drop_prob <= 1.0:
            raise ValueError(f"drop_prob must be in [0, 1], got {drop_prob}")
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_prob, self.training)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


def _select_residual_subset(
    x: Tensor, drop_path_rate: float, training: bool
) -> tuple[Tensor, Tensor | None, float]:
    """The samples whose residual branch runs: (x_sub, keep_indices or None, scale).

    ``None`` means all of them. ``scale`` = B / kept keeps the expectation of the residual.
    """
    B = x.shape[0]
    if not training or drop_path_rate == 0.0 or B <= 1:
        return x, None, 1.0
    keep = min(max(int(B * (1.0 - drop_path_rate)), 1), B)
    indices = torch.randperm(B, device=x.device)[:keep]  # (keep,)
    return x.index_select(0, indices), indices, B / keep


def _select_rope(rope: Tensor | None, indices: Tensor | None, batch: int) -> Tensor | None:
    """The same samples of a (2, B, 1, L, Dh) rope; one that all samples share stays."""
    if rope is None or indices is None or rope.ndim != 5 or rope.shape[1] != batch:
        return rope
    return rope.index_select(1, indices)


def _select_batch(x: Tensor, indices: Tensor | None, batch: int) -> Tensor:
    """The same samples of (B, ...); a tensor of batch 1, which all samples share, stays."""
    if indices is None or x.shape[0] != batch:
        return x
    return x.index_select(0, indices)


def _add_residual(x: Tensor, residual: Tensor, indices: Tensor | None, scale: float) -> Tensor:
    """x + residual, where the residual may belong to some samples only."""
    if indices is None:
        return x + residual
    # Under autocast the branch may return another dtype than the stream.
    return x.index_add(0, indices, residual.to(x.dtype), alpha=scale)
