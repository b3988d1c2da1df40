"""Activation functions by name."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
OPEN_SWIGLU_ALPHA = 1.702


def srelu(x: Tensor) -> Tensor:
    """Squared ReLU (Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


def open_swiglu(x: Tensor, alpha: float = OPEN_SWIGLU_ALPHA) -> Tensor:
    """x * sigmoid(alpha * x): the sigmoid form of GELU, gate of the gpt-oss models."""
    return x * torch.sigmoid(alpha * x)


class SRelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return srelu(x)


class OpenSwiGLU(nn.Module):
    def __init__(self, alpha: float = OPEN_SWIGLU_ALPHA):
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return open_swiglu(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


# A name that ends in "glu" stands for a gated MLP (arXiv 2002.05202) with that gate.
ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "reglu": F.relu,
    "silu": F.silu,
    "swiglu": F.silu,
    "gelu": F.gelu,
    "geglu": F.gelu,
    "srelu": srelu,
    "openswiglu": open_swiglu,
}

ACTIVATION_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "srelu": SRelu,
    "openswiglu": OpenSwiGLU,
}


def is_glu(name: str) -> bool:
    """Whether an MLP with this activation is gated."""
    return name.endswith("glu")


def get_activation(name: str) -> Activation:
    """The function of that name; for a GLU, that of its gate. ValueError if there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"Unsupported activation: {name}. Choose one of {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def get_activation_module(name: str) -> nn.Module:
    """A new module of that name. ValueError if there is none."""
    if name not in ACTIVATION_MODULES:
        choices = sorted(ACTIVATION_MODULES)
        raise ValueError(f"Unsupported activation module: {name}. Choose one of {choices}.")
    return ACTIVATION_MODULES[name]()
