"""A Vision Transformer in plain PyTorch, built from one configuration."""

from vit.attention import AttentivePool
from vit.config import ViTConfig, register_vit_constructors
from vit.features import ViTFeatures
from vit.head import (
    AttentivePoolHead,
    AttentivePoolHeadConfig,
    Head,
    HeadConfig,
    TransposedConv2dHead,
    TransposedConv2dHeadConfig,
    UpsampleHead,
    UpsampleHeadConfig,
    register_head_constructors,
)
from vit.vit import ViT

__version__ = "0.1.0"

__all__ = [
    "AttentivePool",
    "AttentivePoolHead",
    "AttentivePoolHeadConfig",
    "Head",
    "HeadConfig",
    "TransposedConv2dHead",
    "TransposedConv2dHeadConfig",
    "UpsampleHead",
    "UpsampleHeadConfig",
    "ViT",
    "ViTConfig",
    "ViTFeatures",
    "__version__",
    "register_head_constructors",
    "register_vit_constructors",
]
