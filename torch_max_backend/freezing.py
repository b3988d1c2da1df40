"""``options={"freeze": True}``: what depends on weights alone is computed once.

The part of a graph that does becomes a graph of its own, run by eager PyTorch when a weight is seen
for the first time or has changed; its results are further arguments of what is left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Sequence

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from torch_max_backend.frozen_part import FrozenPart
from torch_max_backend.passes.constant_folding import is_computed_from
from torch_max_backend.passes.joined_projections import join_projections
from torch_max_backend.passes.packed_weights import pack_weights

log = logging.getLogger(__name__)

PASSES: tuple[Callable[[GraphModule, Container[Node]], None], ...] = (
    join_projections,
    pack_weights,
)
"""What is done, in this order, given the nodes that depend on weights alone."""


def freeze(gm: GraphModule, weights: Sequence[int]) -> FrozenPart | None:
    """Takes what depends on weights alone out of a graph, which gets an argument for each result;
    packs the weights of products. None where there is nothing to take.

    Args:
        gm: an AOTAutograd graph after the passes.
        weights: positions of parameters and buffers that the model does not change.
    """
    placeholders = gm.graph.find_nodes(op="placeholder")
    given = {placeholders[i] for i in weights if _is_static(placeholders[i])}
    for rewrite in PASSES:
        fixed = _fixed(gm, given)
        _move_up(gm, fixed)
        rewrite(gm, {node for node in fixed if fixed[node]})
    fixed = _fixed(gm, given)
    roots = [node for node in fixed if fixed[node] and _is_wanted(node, fixed)]
    if not roots:
        return None
    part, used = _part(gm, fixed, roots)
    for root in roots:
        with gm.graph.inserting_after(gm.graph.find_nodes(op="placeholder")[-1]):
            argument = gm.graph.placeholder(f"{root.name}_frozen")
        argument.meta = dict(root.meta)
        root.replace_all_uses_with(argument)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    log.info("frozen: %d tensors, computed once from %d weights", len(roots), len(used))
    return FrozenPart(part, [placeholders.index(node) for node in used], len(placeholders))


def _is_static(placeholder: Node) -> bool:
    value = placeholder.meta.get("val")
    return isinstance(value, Tensor) and all(type(n) is int for n in value.shape)


def _fixed(gm: GraphModule, given: set[Node]) -> dict[Node, bool]:
    """The nodes that depend on the given ones and constants alone, in the graph's order; whether
    on a given one."""
    fixed: dict[Node, bool] = {}
    for node in gm.graph.nodes:
        if node in given or node.op == "get_attr" or is_computed_from(node, fixed):
            fixed[node] = node in given or any(fixed[source] for source in node.all_input_nodes)
    return fixed


def _move_up(gm: GraphModule, fixed: Iterable[Node]) -> None:
    """So that a rewrite may use any of them anywhere."""
    last = gm.graph.find_nodes(op="placeholder")[-1]
    for node in fixed:
        if node.op != "placeholder":
            last.append(node)
            last = node


def _is_wanted(node: Node, fixed: Container[Node]) -> bool:
    """Whether the rest of the graph takes the node's result; it makes its views of weights itself,
    and what it returns."""
    if node.op != "call_function" or _is_view(node):
        return False
    if any(user.op == "output" for user in node.users):
        return False
    users = list(node.users)
    while users:
        user = users.pop()
        if user not in fixed:
            return isinstance(node.meta["val"], Tensor)
        if _is_view(user):
            users += user.users
    return False


def _is_view(node: Node) -> bool:
    """Whether the node shows memory of its argument."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.op == "call_function"  # operator.getitem
    return any(result.alias_info is not None for result in target._schema.returns)


def _part(
    gm: GraphModule, fixed: Iterable[Node], roots: Sequence[Node]
) -> tuple[GraphModule, list[Node]]:
    """The graph that computes the roots, and the placeholders it starts from."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    used = [node for node in fixed if node.op == "placeholder"]
    for node in used:
        copies[node] = graph.placeholder(node.name)
    for node in fixed:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[root] for root in roots])
    graph.eliminate_dead_code()
    for node in used:
        if not copies[node].users:
            graph.erase_node(copies[node])
    return GraphModule(gm, graph), [node for node in used if copies[node].users]
