"""Queries, keys and values from one product, where a model has a linear layer for each.

Weights that stay the same are joined once; attention reads its operands in the joint result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.composites import attention  # noqa: F401  defines attention
from torch_max_backend.dims import expression
from torch_max_backend.passes import operators  # noqa: F401  defines softmax_attention
from torch_max_backend.passes.matching import call
from torch_max_backend.views import view_of

aten = torch.ops.aten
ours = torch.ops.torch_max_backend

_ATTENTION = {ours.attention.default, ours.softmax_attention.default}
_ON_THE_WAY = {
    ours.rotary_embedding.default,
    aten.permute.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.view.default,
    aten._unsafe_view.default,
}


def join_projections(gm: GraphModule, fixed: Container[Node]) -> None:
    """Replaces layers of one input, with ``fixed`` weights, that feed attention alone."""
    layers: dict[Any, list[Node]] = defaultdict(list)
    for node in gm.graph.nodes:
        if node.target in (aten.addmm.default, aten.mm.default) and not node.kwargs:
            *bias, input, right = node.args
            rows = view_of(input)  # each layer may have its own view of the same numbers
            known = all(x in fixed for x in (*bias, right))
            if known and rows.dense() and _is_plain(node) and _feeds_attention(node):
                sizes = [expression(n) for n in (rows.offset, *rows.sizes)]
                layers[node.target, rows.base, *sizes].append(node)
    for joined in layers.values():
        if len(joined) > 1:
            _join(gm, joined)
    gm.recompile()


def _is_plain(node: Node) -> bool:
    """Whether the layer is on CPU and its bias, if it has one, has a number for each column."""
    result, first = node.meta["val"], node.args[0]
    has_bias = node.target is aten.addmm.default
    bias = first.meta["val"].shape if has_bias else None  # type: ignore[union-attr]
    return result.device.type == "cpu" and bias in (None, result.shape[1:])


def _feeds_attention(node: Node) -> bool:
    users = list(node.users)
    return bool(users) and all(
        user.target in _ATTENTION or (user.target in _ON_THE_WAY and _feeds_attention(user))
        for user in users
    )


def _join(gm: GraphModule, layers: Sequence[Node]) -> None:
    target: Any = layers[0].target
    with gm.graph.inserting_before(layers[0]):
        right = call(gm, aten.cat.default, [layer.args[-1] for layer in layers], 1)
        operands: list[Any] = [layers[0].args[-2], right]
        if target is aten.addmm.default:
            operands.insert(0, call(gm, aten.cat.default, [layer.args[0] for layer in layers]))
        product = call(gm, target, *operands)
        product.meta = {**layers[0].meta, **product.meta}
        ends = list(accumulate(layer.meta["val"].shape[1] for layer in layers))
        for layer, start, end in zip(layers, [0, *ends], ends, strict=False):
            part = call(gm, aten.slice.Tensor, product, 1, start, end)
            layer.replace_all_uses_with(part)
    for layer in layers:
        gm.graph.erase_node(layer)
