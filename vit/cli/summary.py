"""What ``vit validate`` and ``vit summarize`` say of a configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from vit import ViT, ViTConfig
from vit.flops import product_flops

ARCHITECTURE = ("depth", "hidden_size", "ffn_hidden_size", "num_attention_heads")


def validate(path: Path) -> dict[str, Any]:
    """Whether a file holds a configuration, which rules fail, and its main sizes."""
    found: dict[str, Any] = {"valid": False, "config_path": str(path)}
    try:
        config = ViTConfig.from_yaml(path)
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        return found | {"errors": [" ".join(str(error).split())]}
    found |= {name: getattr(config, name) for name in ARCHITECTURE if name != "ffn_hidden_size"}
    errors = [
        f"img_size {i} of axis {axis} is not divisible by patch_size {p}"
        for axis, (i, p) in enumerate(zip(config.img_size, config.patch_size, strict=True))
        if i % p
    ]
    if config.depth == 0:
        errors.append("depth must be positive, got 0")
    return found | ({"errors": errors} if errors else {"valid": True})


def summarize(config: ViTConfig) -> dict[str, Any]:
    """Architecture, sequence, parameters, memory and FLOPs of the model that it makes.

    Parameters are counted in a model without storage; FLOPs are those of the matrix products of one
    image, two per multiplication.
    """
    model = config.instantiate(device="meta").eval()
    image = torch.empty(1, config.in_channels, *config.img_size, dtype=config.dtype, device="meta")
    grid = [i // p for i, p in zip(config.img_size, config.patch_size, strict=True)]
    patches = math.prod(grid)
    parameters = _parameters(model)
    size = parameters["total"] * config.dtype.itemsize
    architecture = {name: getattr(config, name) for name in ARCHITECTURE}
    return {
        "architecture": architecture
        | {
            "head_dim": config.hidden_size // config.num_attention_heads,
            "activation": config.activation,
            "pos_enc": config.pos_enc,
        },
        "sequence": {
            "num_patches": patches,
            "seq_length": patches + config.num_cls_tokens + config.num_register_tokens,
        },
        "parameters": parameters,
        "memory": {
            "params_bytes": size,
            "params_mb": size / 2**20,
            "dtype": str(config.dtype).removeprefix("torch."),
        },
        "flops": product_flops(model, image),
    }


def _parameters(model: ViT) -> dict[str, Any]:
    total = _count(model.parameters())
    positions = [
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith(("stem.pos_enc", "rope."))
    ]
    stem = [*model.stem.parameters(), *_of(model.patch_embed_norm)]
    blocks = _count(model.blocks.parameters())
    return {
        "total": total,
        "total_millions": total / 1e6,
        "patch_embed": _count(stem) - _count(p for p in positions if any(p is q for q in stem)),
        "transformer": blocks,
        "per_layer": blocks // len(model.blocks),
        "final_norm": _count(model.output_norm.parameters()),
        "tokens": model.cls_tokens.numel() + model.register_tokens.numel(),
        "pos_encoding": _count(positions),
        "heads": _count(model.heads.parameters()),
    }


def _of(module: nn.Module | None) -> Iterable[nn.Parameter]:
    return () if module is None else module.parameters()


def _count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
