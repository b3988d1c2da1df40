"""RMS normalisation as one operator, torch_max_backend::rms_norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


@torch.library.custom_op("torch_max_backend::rms_norm", mutates_args=())
def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float
) -> Tensor:
    """input / rms(input) * weight over the trailing axes, computed in float32 for half."""
    return F.rms_norm(input, list(normalized_shape), weight, eps).contiguous()


@_rms_norm.register_fake
def _(input, normalized_shape, weight, eps):
    dtype = input.dtype if weight is None else torch.result_type(input, weight)
    return torch.empty(input.shape, dtype=dtype, device=input.device)


def _rms_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, ctx.normalized_shape, weight, ctx.eps = inputs
    ctx.save_for_backward(input, weight)


def _rms_norm_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight = ctx.saved_tensors
    wide = torch.float32 if input.dtype in _HALF else input.dtype
    axes = list(range(-len(ctx.normalized_shape), 0))
    x, g = input.to(wide), grad.to(wide)
    rstd = torch.rsqrt(x.square().mean(axes, keepdim=True) + ctx.eps)
    normalized = x * rstd
    scaled = g if weight is None else g * weight.to(wide)
    inner = (scaled * normalized).mean(axes, keepdim=True)
    grad_input = (rstd * (scaled - normalized * inner)).to(input.dtype)
    grad_weight = None
    if weight is not None:
        grad_weight = (g * normalized).sum_to_size(weight.shape).to(weight.dtype)
    return grad_input, None, grad_weight, None


_rms_norm.register_autograd(_rms_norm_backward, setup_context=_rms_norm_setup)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """torch.nn.functional.rms_norm kept whole.

    Without eps PyTorch takes the machine epsilon of the dtype it computes in.
    """
    if not input.is_floating_point():
        return F.rms_norm(input, list(normalized_shape), weight, eps)
    if eps is None:
        eps = torch.finfo(torch.float32 if input.dtype in _HALF else input.dtype).eps
    return _rms_norm(input, normalized_shape, weight, eps)
