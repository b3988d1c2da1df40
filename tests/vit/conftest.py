"""Threads, seeds, small configurations and random weights for the tests of ``vit``."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from vit import ViTConfig

SMALL: dict[str, Any] = {
    "in_channels": 3,
    "patch_size": (8, 8),
    "img_size": (32, 24),  # a grid of 4 x 3
    "depth": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 2,
    "dtype": torch.float32,
}
VOLUME = {"patch_size": (4, 8, 8), "img_size": (8, 24, 16)}  # a grid of 2 x 3 x 2


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """The tensors are tiny: more threads only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_config() -> Callable[..., ViTConfig]:
    """A small configuration, with changes; volume=True for 3-D."""

    def make(volume: bool = False, **changes: Any) -> ViTConfig:
        base = {**SMALL, **VOLUME, "pos_enc": "fourier"} if volume else SMALL
        return ViTConfig(**{**base, **changes})

    return make


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Gives every parameter random values, since a fresh layer is the identity."""

    def fill(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(torch.randn(p.shape) * 0.2)
        return module

    return fill
