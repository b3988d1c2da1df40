"""What depends on no input is computed once, by eager PyTorch: position encodings, masks, weights
of an interpolation.

MAX folds constants too, by compiling a kernel for each operator on the way.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from torch_max_backend.context import real_tensors

aten = torch.ops.aten

LARGEST = 1 << 24
"""Bytes of a constant: beyond it the operators take less room than their result."""

_UNDEFINED = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_permuted.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
_FILLS = {aten.full.default, aten.full_like.default, aten.scalar_tensor.default}
_VIEWS = {aten.alias.default, aten.expand.default, aten.unsqueeze.default, aten.view.default}
_COPIES = {
    aten.clone.default,
    aten._to_copy.default,
    torch.ops.prims.convert_element_type.default,
}


def fold_constants(gm: GraphModule) -> None:
    """Replaces what is computed from constants alone by its value."""
    values = _constants(gm)
    kept: set[Node] = set()
    folded = []
    for node in reversed(values):
        if any(user not in values or user in kept for user in node.users):
            if _is_made_in_place(node) or isinstance(values[node], tuple | list):
                kept.add(node)
            elif node.op != "get_attr":
                folded.append(node)
    for node in folded:
        _replace(gm, node, values[node])
    if folded:
        gm.graph.eliminate_dead_code()
        gm.recompile()


def _constants(gm: GraphModule) -> dict[Node, Any]:
    """The values of the nodes that depend on no input, in the graph's order."""
    values: dict[Node, Any] = {}
    with real_tensors(), torch.no_grad():
        for node in gm.graph.nodes:
            if node.op == "get_attr":
                value = getattr(gm, str(node.target))
                if isinstance(value, torch.Tensor):
                    values[node] = value.cpu()
            elif node.target is aten.full_like.default and _is_known_fill(node):
                fake = node.meta["val"]
                values[node] = torch.full(fake.shape, node.args[1], dtype=fake.dtype)
            elif is_computed_from(node, values) and _is_small(node):
                values[node] = _evaluate(node, values)
    return values


def is_computed_from(node: Node, known: Container[Node]) -> bool:
    """Whether the node is a pure operator of known values alone, its sizes numbers."""
    if node.op != "call_function" or any(source not in known for source in node.all_input_nodes):
        return False
    for result in _results(node):
        if not isinstance(result, torch.Tensor) or not all(type(n) is int for n in result.shape):
            return False
    if node.target is operator.getitem:
        return True
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
        and target not in _UNDEFINED
    )


def _results(node: Node) -> Sequence[Any]:
    results = node.meta.get("val")
    return results if isinstance(results, tuple | list) else [results]


def _is_small(node: Node) -> bool:
    return all(x.numel() * x.element_size() <= LARGEST for x in _results(node))


def _is_known_fill(node: Node) -> bool:
    """Of its tensor a fill takes the shape alone."""
    static = all(isinstance(n, int) for n in node.meta["val"].shape)
    return isinstance(node.args[1], bool | int | float) and static and _is_small(node)


def _evaluate(node: Node, values: Mapping[Node, Any]) -> Any:
    """On the host, wherever the result is to be: the machine that compiles may lack the device."""
    args = map_arg(node.args, values.__getitem__)
    kwargs = dict(map_arg(node.kwargs, values.__getitem__))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_made_in_place(node: Node) -> bool:
    """Whether MAX makes the numbers where they are needed, for less than reading them costs."""
    if node.target is aten.expand.default:
        return True
    source = node
    while source.target in _VIEWS or source.target in _COPIES:
        source = source.all_input_nodes[0]
    return source.target in _FILLS


def _replace(gm: GraphModule, node: Node, value: torch.Tensor) -> None:
    device = node.meta["val"].device
    if device.type != "cpu" and torch.accelerator.is_available():
        value = value.to(device)
    name = f"{node.name}_folded"
    gm.register_buffer(name, value, persistent=False)
    with gm.graph.inserting_before(node):
        constant = gm.graph.get_attr(name)
    constant.meta = dict(node.meta)
    node.replace_all_uses_with(constant)
