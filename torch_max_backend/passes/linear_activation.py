"""gelu(x @ weight^T + bias), or another activation of it, on CPU as one kernel: MAX's own GELU
costs a twentieth of a ViT in float32, its SiLU as much, in bfloat16 a tenth."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.passes import operators  # noqa: F401  defines linear_activation
from torch_max_backend.passes.matching import RESHAPES, activation_of
from torch_max_backend.views import transposed

aten = torch.ops.aten


def fuse_linear_activation(gm: GraphModule) -> None:
    """Replaces linear layers whose one use is an activation, reshaped or not in between."""
    fused = False
    for node in list(gm.graph.nodes):
        found = activation_of(node)
        if found is None:
            continue
        activation, value = found
        views, linear = _chain_above(value)
        operands = linear_operands(linear) if len(linear.users) == 1 else None
        if operands is None:
            continue
        fused = True
        with gm.graph.inserting_before(linear):
            joined = gm.graph.call_function(
                torch.ops.torch_max_backend.linear_activation.default,
                operands,
                {"activation": activation},
            )
        joined.meta = dict(linear.meta)
        linear.replace_all_uses_with(joined)
        node.replace_all_uses_with(views[0] if views else joined)
        gm.graph.erase_node(linear)
    if fused:
        gm.graph.eliminate_dead_code()
        gm.recompile()


def _chain_above(value: Any) -> tuple[list[Node], Node]:
    """Reshapes that are used once, the last one first, and what they reshape."""
    views = []
    while value.target in RESHAPES and len(value.users) == 1:
        views.append(value)
        value = value.args[0]
    return views, value


def linear_operands(node: Node) -> tuple[Any, ...] | None:
    """Input, weight and bias of a linear layer in float32 or bfloat16 on CPU."""
    if node.target is not aten.addmm.default or node.kwargs:
        return None
    bias, input, mat2 = node.args
    result = node.meta["val"]
    weight = transposed(mat2)  # type: ignore[arg-type]
    if weight is None or bias.meta["val"].ndim != 1:  # type: ignore[union-attr]
        return None
    static = all(isinstance(n, int) and n > 0 for n in weight.meta["val"].shape)
    if result.device.type != "cpu" or not static:
        return None
    if result.dtype not in (torch.float32, torch.bfloat16):
        return None
    return input, weight, bias
