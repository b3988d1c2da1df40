"""Composite functions that must not reach AOTAutograd as PyTorch would decompose them: one a file.

AOTAutograd expands composite functions before a decomposition table is asked. Here they are
replaced in Dynamo's graph: attention and RMS normalisation by one custom operator each, so that
they arrive whole, multi-head attention by linear layers around that attention, and image resizing
by two matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from torch_max_backend.composites.attention import scaled_dot_product_attention
from torch_max_backend.composites.interpolation import interpolate
from torch_max_backend.composites.multi_head_attention import multi_head_attention_forward
from torch_max_backend.composites.normalization import rms_norm

_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
    F.multi_head_attention_forward: multi_head_attention_forward,
    F.interpolate: interpolate,
    F.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    torch.ops.aten.rms_norm.default: rms_norm,
}


def replace_composites(gm: GraphModule) -> GraphModule:
    """Replaces the calls in Dynamo's graph and in the graphs nested in it; returns ``gm``."""
    for module in gm.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                _replace(node)
            module.recompile()
    return gm


def _replace(node: Node) -> None:
    replacement = _REPLACEMENTS.get(node.target) if node.op == "call_function" else None
    if replacement is not None:
        node.target = replacement
