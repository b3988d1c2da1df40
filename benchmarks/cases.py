"""What is run: models by name, with seeded weights and inputs that every contestant shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pretrained_models.comparison import randomise_
from vit.config import PosEnc, ViTConfig
from vit.flops import product_flops
from vit.head import HeadConfig

SEED = 0
SIZES = {  # depth, width, MLP width, heads (arXiv 2012.12877, 2010.11929)
    "vit-ti": (12, 192, 768, 3),
    "vit-s": (12, 384, 1536, 6),
    "vit-b": (12, 768, 3072, 12),
    "vit-l": (24, 1024, 4096, 16),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLASSES = 1000
INT8 = "int8"
"""Linear layers whose weights and, at each call, activations are int8, by torchao."""
PRECISIONS = DTYPES | {INT8: torch.bfloat16}
"""The dtype of the model, or of what is not int8."""


@dataclass(frozen=True)
class Case:
    """One model at one batch, image size and precision."""

    model: str
    batch: int
    resolution: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.model} {self.dtype} batch {self.batch} at {self.resolution}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Single(nn.Module):
    """A model whose one result is a tensor, as every runtime can return it."""

    def __init__(self, model: nn.Module, select: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.select = select

    def forward(self, x: Tensor) -> Tensor:
        return self.select(self.model(x))


def make_model(case: Case) -> nn.Module:
    """The model in eval mode and in float32, whatever the case's precision.

    Raises:
        KeyError: no model of that name.
    """
    model = MODELS[case.model](case.resolution)
    randomise_(model, SEED)
    return model.eval()


def in_precision(model: nn.Module, case: Case) -> nn.Module:
    """The model of ``make_model``, changed to the case's precision."""
    model = model.to(PRECISIONS[case.dtype])
    if case.dtype != INT8:
        return model
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def images_in_precision(x: Tensor, case: Case) -> Tensor:
    """The images of ``make_input`` as that model takes them."""
    return x.to(PRECISIONS[case.dtype])


def make_input(case: Case) -> Tensor:
    """(batch, 3, resolution, resolution), float32, standard normal."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randn(case.batch, 3, case.resolution, case.resolution, generator=generator)


def flops(case: Case) -> int:
    """Floating-point operations of one call: those of its matrix products, two per product."""
    one = replace(case, batch=1)
    return product_flops(make_model(case), make_input(one)) * case.batch


def _vit_config(
    name: str, resolution: int, activation: str = "gelu", pos_enc: PosEnc = "learnable"
) -> ViTConfig:
    depth, width, ffn, heads = SIZES[name]
    return ViTConfig(
        in_channels=3,
        patch_size=(16, 16),
        img_size=(resolution, resolution),
        depth=depth,
        hidden_size=width,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation=activation,
        num_cls_tokens=1,
        pos_enc=pos_enc,
        norm_type="layernorm",
        dtype=torch.float32,
    )


def _vit(name: str, resolution: int, **options: Any) -> nn.Module:
    config = _vit_config(name, resolution, **options)
    return Single(config.instantiate(), lambda output: output.dense_features)


class _Classifier(nn.Module):
    """A linear layer on the class token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        heads = {"classes": HeadConfig(out_features=CLASSES)}
        self.vit = replace(config, heads=heads).instantiate()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.vit.get_head("classes")(self.vit(images).cls_tokens[:, 0])
        return result


def _classifier(name: str, resolution: int) -> nn.Module:
    return _Classifier(_vit_config(name, resolution))


def _transformers_config(resolution: int, attention: str = "sdpa", activation: str = "gelu") -> Any:
    from transformers import ViTConfig as TransformersConfig

    depth, width, ffn, heads = SIZES["vit-s"]
    return TransformersConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=ffn,
        image_size=resolution,
        hidden_act=activation,
        attn_implementation=attention,
        num_labels=CLASSES,
    )


def _transformers_vit(resolution: int, **options: Any) -> nn.Module:
    from transformers import ViTModel

    model = ViTModel(_transformers_config(resolution, **options), add_pooling_layer=False)
    return Single(model, lambda output: output.last_hidden_state)


def _transformers_classifier(resolution: int) -> nn.Module:
    from transformers import ViTForImageClassification

    model = ViTForImageClassification(_transformers_config(resolution))
    return Single(model, lambda output: output.logits)


class _TorchViT(nn.Module):
    """A ViT of PyTorch's own modules, as a user would write it."""

    def __init__(self, resolution: int, depth: int, width: int, ffn: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (resolution // 16) ** 2 + 1, width))
        block = nn.TransformerEncoderLayer(
            width, heads, ffn, 0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, depth, nn.LayerNorm(width), enable_nested_tensor=False
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        result: Tensor = self.blocks(x + self.positions)
        return result


def _torch_vit(resolution: int) -> nn.Module:
    return _TorchViT(resolution, *SIZES["vit-s"])


MODELS: dict[str, Callable[[int], nn.Module]] = {
    **{name: partial(_vit, name) for name in SIZES},
    **{f"{name}-classifier": partial(_classifier, name) for name in SIZES},
    "transformers-vit-s": _transformers_vit,
    "transformers-vit-s-classifier": _transformers_classifier,
    "torch-vit-s": _torch_vit,
    "written-attention": partial(_transformers_vit, attention="eager"),
    "rotary-vit-s": partial(_vit, "vit-s", pos_enc="rope"),
    "silu-vit-s": partial(_vit, "vit-s", activation="silu"),
    "swiglu-vit-s": partial(_vit, "vit-s", activation="swiglu"),
    "quick-gelu-vit-s": partial(_transformers_vit, activation="quick_gelu"),
}
COMPARED = ["vit-ti", "vit-s", "vit-b", "transformers-vit-s"]
"""The models that a benchmark takes where none are named."""
