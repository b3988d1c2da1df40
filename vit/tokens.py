"""Token masks: True keeps a token, False drops it (MAE, arXiv 2111.06377)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mask_is_ragged(mask: Tensor) -> bool:
    """Whether the rows of a (N, L) mask keep different numbers of tokens."""
    counts = mask.sum(dim=1)  # (N,)
    return bool((counts != counts[:1]).any())


def check_mask(mask: Tensor, tokens: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool tensor (True = keep), got {mask.dtype}")
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"mask must have the shape {tuple(tokens.shape[:2])} of the tokens, "
            f"got {tuple(mask.shape)}"
        )


def kept_indices(mask: Tensor) -> Tensor:
    """Positions of the kept tokens of a (N, L) mask that is not ragged: int64 (N, kept).

    The number of kept tokens depends on the data: to trace this as one graph, set
    ``torch._dynamo.config.capture_dynamic_output_shape_ops = True``. A traced graph checks only
    that the number of all kept tokens is a multiple of N. Raises ValueError for a ragged mask in
    eager.
    """
    if not torch.compiler.is_compiling() and mask_is_ragged(mask):
        counts = mask.sum(dim=1)
        raise ValueError(
            "mask must keep the same number of tokens in every row, got "
            f"{int(counts.min())} to {int(counts.max())}: make it with create_mask"
        )
    tokens = mask.nonzero()[:, 1]  # (N * kept,), row-major
    kept = tokens.shape[0] // max(mask.shape[0], 1)
    if torch.compiler.is_compiling():
        torch._check(kept != 0)  # attention asks whether there are tokens at all
    return tokens.view(mask.shape[0], kept)  # (N, kept)


def take_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """(N, L, D), (N, kept) -> (N, kept, D)"""
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def apply_mask(
    mask: Tensor, x: Tensor, fill_value: float | Tensor | None = None, padding_value: float = 0
) -> Tensor:
    """Drop the tokens of x (N, L, D) where mask (N, L) is False.

    With ``fill_value`` (a number or a tensor that broadcasts, such as a mask token) they are
    replaced and the result is (N, L, D). Otherwise it is (N, kept, D); rows of a ragged mask are
    padded on the right with ``padding_value`` to the longest. Under torch.compile a mask must not
    be ragged, see `kept_indices`. Raises ValueError if the shapes do not match or the mask is not
    bool.
    """
    check_mask(mask, x)
    if fill_value is not None:
        return torch.where(mask.unsqueeze(-1), x, fill_value)  # (N, L, D)
    if torch.compiler.is_compiling() or not mask_is_ragged(mask):
        return take_tokens(x, kept_indices(mask))  # (N, kept, D)
    counts = mask.sum(dim=1, keepdim=True)  # (N, 1)
    longest = int(counts.max())
    order = mask.long().argsort(dim=1, descending=True, stable=True)[:, :longest]  # (N, longest)
    is_token = torch.arange(longest, device=mask.device) < counts  # (N, longest)
    return torch.where(is_token.unsqueeze(-1), take_tokens(x, order), padding_value)


def unapply_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Put the tokens of x (N, kept, D) back where mask (N, L) is True, zeros elsewhere: (N, L, D).

    The inverse of `apply_mask`, for ragged masks too. Raises ValueError if x does not have as many
    tokens as the mask keeps.
    """
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise ValueError(f"mask must be a bool (N, L) tensor, got {mask.dtype} {tuple(mask.shape)}")
    if mask.shape[0] != x.shape[0]:
        raise ValueError(f"mask has {mask.shape[0]} rows, x a batch of {x.shape[0]}")
    if not torch.compiler.is_compiling():
        longest = int(mask.sum(dim=1).max()) if mask.shape[0] else x.shape[1]
        if longest != x.shape[1]:
            raise ValueError(f"mask keeps {longest} tokens, x has {x.shape[1]}")
    if x.shape[1] == 0:
        return x.new_zeros(*mask.shape, x.shape[-1])
    source = (mask.cumsum(dim=1) - 1).clamp(min=0)  # (N, L): which kept token goes here
    return torch.where(mask.unsqueeze(-1), take_tokens(x, source), 0)  # (N, L, D)


def create_mask(
    size: Sequence[int],
    mask_ratio: float,
    batch_size: int = 1,
    scale: int = 1,
    roll: bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random mask of a grid of ``size``: bool (N, L), exactly round(L * mask_ratio) False per row.

    ``scale`` masks blocks of scale tokens per axis (one of them may be masked in part, for the
    exact count). ``roll`` shifts a row's flat mask by scale // 2 with probability 0.5, so that
    blocks do not always start at the same places. Raises ValueError for a ratio outside (0, 1), a
    scale below 1 and an axis that is not longer than scale.
    """
    if not 0.0 < mask_ratio < 1.0:
        raise ValueError(f"mask_ratio must be in (0, 1), got {mask_ratio}")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    if any(dim <= scale for dim in size):
        raise ValueError(f"every dimension of size must be larger than scale={scale}, got {size}")
    L = math.prod(size)
    score = torch.rand(batch_size, *(-(-dim // scale) for dim in size), device=device)  # blocks
    for axis, dim in enumerate(size, start=1):
        score = score.index_select(axis, torch.arange(dim, device=device) // scale)
    # All tokens of a block share a score, so that a stable sort lists block after block.
    order = score.flatten(1).argsort(dim=1, stable=True)  # (N, L)
    masked = order[:, : round(L * mask_ratio)]  # (N, masked)
    mask = torch.ones(batch_size, L, dtype=torch.bool, device=device).scatter(1, masked, False)
    if roll:
        shift = torch.rand(batch_size, 1, device=device) < 0.5  # (N, 1)
        mask = torch.where(shift, mask.roll(scale // 2, dims=1), mask)
    return mask


def generate_non_overlapping_mask(mask1: Tensor, p1: float, p2: float) -> Tensor:
    """A random mask that keeps int(L * p2) tokens of each row, none of which ``mask1`` keeps.

    ``mask1`` is bool (N, L) and keeps int(L * p1) tokens per row. Raises ValueError if both do not
    fit, int(L * p1) + int(L * p2) > L, or if a row of mask1 leaves too few tokens.
    """
    L = mask1.shape[1]
    n1, n2 = int(L * p1), int(L * p2)
    if n1 + n2 > L:
        raise ValueError(f"masks of {n1} and {n2} tokens cannot be disjoint among {L} tokens")
    most = int(mask1.sum(dim=1).max()) if mask1.shape[0] else 0
    if most + n2 > L:
        raise ValueError(f"mask1 keeps {most} of {L} tokens, no room for {n2} others (p1={p1})")
    score = torch.rand(mask1.shape, device=mask1.device).masked_fill(mask1, -1.0)  # (N, L)
    return torch.zeros_like(mask1).scatter(1, score.topk(n2, dim=1).indices, True)
