"""The vision encoders of ``transformers``, one graph each, beside eager and float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from tests.harness import FLOATS, Case, comparison, uniform
from tests.models import images, model_case

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
SWIN = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "image_size": 32, "patch_size": 4}
NAMES = {
    "ViT": ("ViTModel", "ViTConfig", SIZES),
    "DeiT": ("DeiTModel", "DeiTConfig", SIZES),
    "DINOv2": ("Dinov2Model", "Dinov2Config", DINO),
    "DINOv2-registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", SIZES | {"num_register_tokens": 2}),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", SIZES),
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", SIZES),
    "BEiT": ("BeitModel", "BeitConfig", SIZES),
    "BEiT-relative": ("BeitModel", "BeitConfig", SIZES | {"use_relative_position_bias": True}),
    "Swin": ("SwinModel", "SwinConfig", SWIN | {"window_size": 2}),
    "Swin-padded": ("SwinModel", "SwinConfig", SWIN | {"window_size": 3}),
    "ViT-MAE": ("ViTMAEModel", "ViTMAEConfig", SIZES),
}
# With a symbolic image size too, PyTorch itself takes minutes to reason about their windows.
BATCH_ONLY = ("Swin", "Swin-padded")
COVERED = ("ViT", "DeiT", "DINOv2", "BEiT", "Swin")
"""Relatives have the same operators and more: masks, registers, relative positions, padding."""
FIRST = {
    "SigLIP": torch.float64,
    "DINOv2-registers": torch.bfloat16,
    "CLIP": torch.float16,
}
"""The dtype whose case has every size symbolic, where it is not float32. The other dtypes need
``--thorough``, for the sake of compile time. test_models_vit.py has one model in all of them."""


def cases() -> Iterator[Case]:
    for (name, (model, config, settings)), dtype in product(NAMES.items(), FLOATS):
        first = dtype == FIRST.get(name, torch.float32)
        built = getattr(transformers, model)(getattr(transformers, config)(**settings))
        case = model_case(
            name,
            _WithNoise(built) if name == "ViT-MAE" else built,
            *_inputs(name, 2),
            results=_results,
            dtype=dtype,
            dynamic=True if first and name not in BATCH_ONLY else "batch",
            others=[_inputs(name, 3)],
        )
        yield replace(case, thorough=name in COVERED or not first)


def _inputs(name: str, batch: int) -> list[torch.Tensor]:
    noise = [uniform(batch, 16)] if name == "ViT-MAE" else []
    return [images(batch, 32), *noise]


def _results(out: Any) -> Any:
    if "ids_restore" in out:
        return out.last_hidden_state, out.mask, out.ids_restore
    return out.last_hidden_state


class _WithNoise(torch.nn.Module):
    """The masking noise as an input, so that the result is no random number."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> Any:
        return self.model(images, noise=noise)


test_models = comparison(list(cases()))
