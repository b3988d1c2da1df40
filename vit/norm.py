"""RMSNorm and LayerNorm behind one name."""

from typing import Literal, TypeGuard, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormType = Literal["rmsnorm", "layernorm"]
NORM_TYPE_CHOICES: tuple[NormType, ...] = get_args(NormType)
DEFAULT_EPS = 1e-5


class _ConstantEps:
    """``eps`` held as text, so that every traced graph has it as a constant.

    With ``dynamic=True`` torch.compile turns the float attributes of modules into inputs, which the
    norms of a region that is traced once (``ViT.forward``) cannot take.
    """

    _eps: str | None

    @property
    def eps(self) -> float | None:
        return None if self._eps is None else float(self._eps)

    @eps.setter
    def eps(self, value: float | None) -> None:
        self._eps = None if value is None else repr(float(value))

    def extra_repr(self) -> str:
        affine = self.elementwise_affine  # type: ignore[attr-defined]
        shape = self.normalized_shape  # type: ignore[attr-defined]
        return f"{shape}, eps={self.eps}, elementwise_affine={affine}"


class LayerNorm(_ConstantEps, nn.LayerNorm):  # type: ignore[misc]
    """`torch.nn.LayerNorm` with a constant ``eps``."""


class RMSNorm(_ConstantEps, nn.RMSNorm):
    """`torch.nn.RMSNorm` that takes the dtype of its input.

    Under autocast the two differ, where torch's warns and leaves its fast path.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def make_norm(
    size: int,
    type: NormType,
    eps: float | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.RMSNorm | nn.LayerNorm:
    """Norm over the last dimension (RMSNorm: arXiv 1910.07467, LayerNorm: arXiv 1607.06450).

    With ``eps=None`` an RMSNorm uses the machine epsilon of its input, a LayerNorm 1e-5.
    Raises ValueError for an unknown ``type``.
    """
    if type not in NORM_TYPE_CHOICES:
        raise ValueError(f"Unsupported norm_type: {type}. Choose one of {NORM_TYPE_CHOICES}.")
    if type == "layernorm":
        eps = DEFAULT_EPS if eps is None else eps
        return LayerNorm(size, eps=eps, device=device, dtype=dtype)
    return RMSNorm(size, eps=eps, device=device, dtype=dtype)


def is_layer_norm(norm: nn.Module) -> TypeGuard[nn.LayerNorm]:
    return isinstance(norm, nn.LayerNorm)


def get_norm_bias(norm: nn.Module) -> Tensor | None:
    """The bias of a norm; None for an RMSNorm, which has none."""
    return norm.bias if is_layer_norm(norm) else None


def apply_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, use_layer_norm: bool
) -> Tensor:
    """Functional form of the two norms: (..., D) -> (..., D)."""
    if use_layer_norm:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    return F.rms_norm(x, weight.shape, weight, eps)
