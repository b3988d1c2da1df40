"""What passes ask of nodes, and how they add one."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from torch_max_backend.passes.operators import FEW_ROWS  # the module defines quick_gelu

aten = torch.ops.aten
RESHAPES = (aten.view.default, aten._unsafe_view.default)
_ACTIVATIONS: dict[Any, str] = {
    aten.silu.default: "silu",
    torch.ops.torch_max_backend.quick_gelu.default: "quick_gelu",
}


def activation_of(node: Any) -> tuple[str, Node] | None:
    """How kernels/functions.mojo names the function of a call of an activation, and what it is
    called with; None for other nodes."""
    if not isinstance(node, Node):
        return None
    if node.target is aten.gelu.default:
        name = "gelu" if node.kwargs.get("approximate", "none") == "none" else "gelu_tanh"
    elif node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
        name, node = "squared_relu", node.args[0]
        if node.target is not aten.relu.default or len(node.users) != 1:
            return None
    elif node.target in _ACTIVATIONS:
        name = _ACTIVATIONS[node.target]
    else:
        return None
    return name, node.args[0]


def arguments(node: Any, target: Any) -> Any:
    """The positional arguments of a call of ``target`` that has no others but a dtype, which its
    result has too; None for anything else."""
    if not isinstance(node, Node) or node.target is not target or node.kwargs.keys() - {"dtype"}:
        return None
    return node.args


def layer_operands(node: Node) -> tuple[Node | None, Node, Node] | None:
    """The bias, a number for each column or None, and the operands of a product of matrices; None
    for other nodes and a product with factors."""
    if node.target not in (aten.addmm.default, aten.mm.default) or node.kwargs:
        return None
    bias, left, right = node.args if node.target is aten.addmm.default else (None, *node.args)
    if isinstance(bias, Node) and bias.meta["val"].ndim != 1:
        return None
    return bias, left, right  # type: ignore[return-value]


def has_few_rows(product: Node) -> bool:
    """Whether so few rows are multiplied that the other operand is better read as it lies."""
    rows = product.meta["val"].shape[0]
    return isinstance(rows, int) and rows < FEW_ROWS


def only_feeds(node: Node, ends: Container[Node], on_the_way: Container[Any]) -> bool:
    """Whether all that uses the node, directly or through targets ``on_the_way``, are ``ends``."""
    return all(
        user in ends or (user.target in on_the_way and only_feeds(user, ends, on_the_way))
        for user in node.users
    )


def call(gm: GraphModule, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new call, at the graph's insertion point, with its fake value."""
    node = gm.graph.call_function(target, args, kwargs)
    values, keywords = map_arg((args, kwargs), lambda arg: arg.meta["val"])
    node.meta = {"val": target(*values, **keywords)}
    return node
