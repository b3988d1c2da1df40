"""Regions that torch.compile traced once (``torch.compiler.nested_compile_region``), put in place.

Dynamo and AOTAutograd spare their work on repeated blocks; MAX sees one flat graph, so that it
fuses across the borders of a region.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from torch_max_backend.errors import MaxBackendError
from torch_max_backend.source_lines import source_of


def inline_nested_regions(gm: GraphModule) -> None:
    """Replaces every call of a region in an AOTAutograd graph by the region's nodes.

    Raises:
        MaxBackendError: a call's arguments differ in shape or dtype from those it was traced with.
    """
    calls = [node for node in gm.graph.nodes if is_region(node)]
    for call in calls:
        region = getattr(gm, str(call.args[0].target))
        inline_nested_regions(region)
        _inline(gm, call, region)
    if calls:
        gm.graph.eliminate_dead_code()
        gm.delete_all_unused_submodules()
        gm.recompile()


def is_region(node: Node) -> bool:
    """Whether a node calls a nested region: (get_attr of the region, its name, *operands)."""
    target = node.target
    return isinstance(target, torch._ops.HigherOrderOperator) and target.name() == "invoke_subgraph"


def _inline(gm: GraphModule, call: Node, region: GraphModule) -> None:
    operands = iter(call.args[2:])
    values: dict[Node, Any] = {}
    with gm.graph.inserting_before(call):
        for node in region.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(operands)
                _check(call, node, values[node])
            elif node.op == "output":
                _replace_results(gm, call, map_arg(node.args[0], values.__getitem__))
            else:
                values[node] = _copy(gm, region, node, values)


def _copy(gm: GraphModule, region: GraphModule, node: Node, values: dict[Node, Any]) -> Node:
    copied = gm.graph.node_copy(node, values.__getitem__)
    if node.op == "get_attr":  # a constant of the region
        name = f"{copied.name}_constant"
        setattr(gm, name, getattr(region, str(node.target)))
        copied.target = name
    return copied


def _replace_results(gm: GraphModule, call: Node, results: Any) -> None:
    for user in list(call.users):
        index = user.args[1]
        user.replace_all_uses_with(results[index])
        gm.graph.erase_node(user)
    gm.graph.erase_node(call)


def _check(call: Node, placeholder: Node, operand: Any) -> None:
    traced = placeholder.meta.get("val")
    given = operand.meta.get("val") if isinstance(operand, Node) else operand
    if isinstance(traced, torch.Tensor) and isinstance(given, torch.Tensor):
        same = traced.dtype == given.dtype and list(map(str, traced.shape)) == list(
            map(str, given.shape)
        )
    else:
        same = str(traced) == str(given)
    if not same:
        raise MaxBackendError(
            f"the region called by {call.name} was traced with {_told(traced)}, this call "
            f"has {_told(given)}; "
            f"take torch.compiler.nested_compile_region away from it\n  source: {source_of(call)}"
        )


def _told(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else str(value)
