"""Initial weights: a truncated normal for every weight, zero for every bias."""

import math

import torch
from torch import Tensor, nn

INIT_STD = 0.02
INIT_BOUND = 2 * INIT_STD

Conv = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d


def _largest_below(bound: float, dtype: torch.dtype) -> float:
    """The largest value of ``dtype`` that is not above ``bound``."""
    value = torch.tensor(bound, dtype=dtype)
    if value.item() > bound:
        value = torch.nextafter(value, torch.zeros_like(value))
    return value.item()


@torch.no_grad()
def trunc_normal_(tensor: Tensor, std: float = INIT_STD, bound: float | None = None) -> Tensor:
    """Fill ``tensor`` in place from N(0, std), truncated at ``+-bound`` (2 std unless given).

    By the inverse of the normal distribution, in one pass: resampling what falls outside, as
    ``torch.nn.init.trunc_normal_`` does it, takes seconds for a ViT-S.
    """
    bound = 2 * std if bound is None else bound
    # Half precision has too few values between 0 and 1 for the inverse CDF: sample in float32.
    wide = torch.promote_types(tensor.dtype, torch.float32)
    sample = tensor if tensor.dtype == wide else torch.empty_like(tensor, dtype=wide)
    within = math.erf(bound / (std * math.sqrt(2)))  # the share of N(0, std) inside the bounds
    sample.uniform_(-within, within).erfinv_().mul_(std * math.sqrt(2))
    limit = _largest_below(bound, tensor.dtype)
    return tensor.copy_(sample).clamp_(-limit, limit)


def zero_bias_if_present(module: nn.Module) -> None:
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)


def init_linear(module: nn.Linear) -> None:
    trunc_normal_(module.weight)
    zero_bias_if_present(module)


def init_conv(module: Conv) -> None:
    """Also for transposed convolutions."""
    trunc_normal_(module.weight)
    zero_bias_if_present(module)


def zero_linear(module: nn.Linear) -> None:
    """Makes a residual branch that ends in ``module`` return zero."""
    nn.init.zeros_(module.weight)
    zero_bias_if_present(module)
