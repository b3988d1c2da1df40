"""One compile serves every batch and image size: recompiles are counted, nothing runs on MAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import torch_max_backend
from tests.models import images, randomised
from vit import ViTConfig

SIZES = [(4, 32, 32), (1, 32, 32), (64, 48, 32), (3, 24, 56), (1, 40, 40)]


class Counting:
    """Lowers for MAX, answers with eager, and counts the graphs that reach the compiler."""

    def __init__(self) -> None:
        self.traced = 0

    def __call__(self, gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        torch_max_backend.max_backend(gm, inputs)  # raises when the graph cannot be lowered
        self.traced += 1
        return gm.forward


def model(pos_enc: str) -> torch.nn.Module:
    config = ViTConfig(
        3, [8, 8], [32, 32], 1, 32, 64, 4, pos_enc=pos_enc, num_cls_tokens=1, dtype=torch.float32
    )
    return randomised(config.instantiate())


def traced(pos_enc: str, sizes: Sequence[tuple[int, int, int]]) -> int:
    torch._dynamo.reset()
    backend, vit = Counting(), model(pos_enc)
    compiled = torch.compile(vit, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch, height, width in sizes:
            x = images(batch, height, width)
            torch.testing.assert_close(compiled(x).dense_features, vit(x).dense_features)
    return backend.traced


@pytest.mark.parametrize("pos_enc", ["rope", "learnable", "fourier", "none"])
def test_one_graph_for_all_sizes(pos_enc: str) -> None:
    with torch_max_backend.generic_sizes():
        assert traced(pos_enc, SIZES) == 1


def test_without_it_a_batch_of_one_is_traced_apart() -> None:
    """What generic_sizes is for; when PyTorch no longer does this, it can go."""
    assert traced("none", SIZES[:2]) == 2


def test_the_options_are_restored() -> None:
    from torch.fx.experimental import _config

    before = (_config.backed_size_oblivious, _config.use_duck_shape)
    with torch_max_backend.generic_sizes():
        assert (_config.backed_size_oblivious, _config.use_duck_shape) == (True, False)
    assert (_config.backed_size_oblivious, _config.use_duck_shape) == before
