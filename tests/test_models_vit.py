"""Models of ``vit`` in every option, one graph each, beside eager and float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from tests.harness import FLOATS, Case, comparison, randn
from tests.models import images, model_case
from vit import (
    AttentivePoolHeadConfig,
    HeadConfig,
    TransposedConv2dHeadConfig,
    UpsampleHeadConfig,
    ViTConfig,
)

SIZES: dict[str, Any] = {
    "in_channels": 3,
    "patch_size": [8, 8],
    "img_size": [32, 32],
    "depth": 1,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "dtype": torch.float32,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "rope-srelu": {"num_cls_tokens": 1},
    "learnable-layernorm-swiglu": {
        "pos_enc": "learnable",
        "norm_type": "layernorm",
        "activation": "swiglu",
        "num_register_tokens": 2,
    },
    "fourier-openswiglu-qknorm": {
        "pos_enc": "fourier",
        "activation": "openswiglu",
        "glu_limit": 7.0,
        "glu_extra_bias": 1.0,
        "qk_normalization": True,
        "patch_embed_normalization": True,
        "layer_scale": 1e-2,
    },
    "geglu-nobias-3d": {
        "pos_enc": "none",
        "activation": "geglu",
        "attention_bias": False,
        "mlp_bias": False,
        "patch_size": [2, 8, 8],
        "img_size": [4, 32, 32],
    },
}
"""Every position encoding, norm and kind of GLU once; activations alone are in the op tests."""


def _tokens(features: Any) -> torch.Tensor:
    return features.dense_features


class _Heads(torch.nn.Module):
    """A backbone with every head, applied to what each is made for."""

    def __init__(self) -> None:
        super().__init__()
        heads = {
            "linear": HeadConfig(out_features=5),
            "pool": AttentivePoolHeadConfig(out_features=6, num_queries=2),
            "transposed": TransposedConv2dHeadConfig(out_features=3),
            "upsample": UpsampleHeadConfig(out_features=2, num_upsample_stages=2),
        }
        config = ViTConfig(**SIZES, num_cls_tokens=1, heads=heads, activation="gelu")
        self.vit = config.instantiate()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.vit(x)
        grid = features.visual_tokens_as_grid.permute(0, 3, 1, 2)  # (B, D, h, w)
        return (
            self.vit.get_head("linear")(features.cls_tokens),
            self.vit.get_head("pool")(features.visual_tokens),
            self.vit.get_head("transposed")(grid),
            self.vit.get_head("upsample")(grid),
        )


def cases() -> Iterator[Case]:
    for name, options in OPTIONS.items():
        config = ViTConfig(**(SIZES | options))
        model = config.instantiate()
        if len(config.img_size) == 3:
            volumes = randn(2, 3, 4, 32, 48)
            others = [[randn(3, 3, 6, 16, 40)]]
            yield model_case(name, model, volumes, results=_tokens, others=others)
            continue
        others = [[images(5, 32, 64)], [images(3, 40, 24)]]
        case = model_case(name, model, images(2, 48, 32), results=_tokens, others=others)
        yield replace(case, thorough=name == "rope-srelu")  # as "masked"
    for dtype in FLOATS[1:]:
        model = ViTConfig(**(SIZES | OPTIONS["rope-srelu"])).instantiate()
        case = model_case(
            "rope-srelu",
            model,
            images(2, 48, 32),
            results=_tokens,
            dtype=dtype,
            dynamic="batch",
            others=[[images(5, 48, 32)]],
        )
        yield replace(case, thorough=dtype != torch.bfloat16)  # as in test_models_transformers
    yield model_case("heads", _Heads(), images(2, 32), results=lambda out: out)
    model = ViTConfig(**(SIZES | OPTIONS["rope-srelu"])).instantiate()
    masks = [model.create_mask(images(n, 32), 0.5, 1) for n in (2, 3)]
    yield model_case(
        "masked",
        model,
        images(2, 32),
        masks[0],
        results=_tokens,
        others=[[images(3, 32), masks[1]]],
    )


test_models = comparison(list(cases()))
