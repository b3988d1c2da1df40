"""Gated linear units (Shazeer, 2020), as SwiGLU and GEGLU, as one kernel on CPU: a linear layer of
two halves, of which one, activated, is multiplied by the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.passes.linear_activation import linear_operands
from torch_max_backend.passes.matching import RESHAPES, activation_of, has_few_rows, only_feeds
from torch_max_backend.views import VIEWS, View, dense_strides, same_sizes, view_of

aten = torch.ops.aten

_COLUMNS = 64
"""What a half must be a multiple of: half a panel, of any type on any processor."""


def fuse_gated_linear(gm: GraphModule) -> None:
    """Replaces the products of the halves of layers that are used for nothing else."""
    fused = False
    for product in gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor):
        a, b = product.args
        fused = _fuse(gm, product, a, b) or _fuse(gm, product, b, a) or fused
    if fused:
        gm.graph.eliminate_dead_code()
        gm.recompile()


def _fuse(gm: GraphModule, product: Node, activated: Any, gated: Any) -> bool:
    found = activation_of(activated)
    if found is None or not isinstance(gated, Node) or len(activated.users) != 1:
        return False
    activation, gates = found
    halves = [view_of(node) for node in (gates, gated)]
    layer = halves[1].base
    operands = linear_operands(layer)
    if operands is None or not _are_halves(halves, layer.meta["val"].shape[1]):
        return False
    rows, width = layer.meta["val"].shape[0], halves[0].sizes[-1]
    lead = _leading_sizes(gated, product)
    if lead is None or not only_feeds(layer, {activated, product}, VIEWS):
        return False
    if has_few_rows(layer):
        return False
    with gm.graph.inserting_before(product):
        node = gm.graph.call_function(
            torch.ops.torch_max_backend.gated_linear.default,
            operands,
            {"activation": activation, "gates_first": same_sizes([halves[0].offset], [0])},
        )
        node.meta = {**layer.meta, "val": layer.meta["val"].new_empty((rows, width))}
        shaped = gm.graph.call_function(aten.view.default, (node, [*lead, width]))
        shaped.meta = dict(product.meta)
    product.replace_all_uses_with(shaped)
    return True


def _are_halves(halves: list[View], columns: Any) -> bool:
    """Whether they are the two halves of the rows of one value."""
    first, second = halves
    *lead, width = first.sizes
    if not isinstance(width, int) or 2 * width != columns or width % _COLUMNS:
        return False
    offsets = [first.offset, second.offset]
    if first.base is not second.base or not (
        same_sizes(offsets, [0, width]) or same_sizes(offsets, [width, 0])
    ):
        return False
    strides = dense_strides([*lead, columns])
    return all(
        len(half.sizes) == len(first.sizes)
        and same_sizes(half.sizes, first.sizes)
        and same_sizes(half.strides, strides)
        for half in halves
    )


def _leading_sizes(part: Node, product: Node) -> Sequence[Any] | None:
    """All sizes of the product but its last one, as the graph has them: those of a reshape of the
    layer or, of a layer as it is, its rows."""
    lead = product.meta["val"].shape[:-1]
    node: Any = part
    while node.target in VIEWS:
        if node.target in RESHAPES and same_sizes(node.meta["val"].shape[:-1], lead):
            return list(node.args[1][:-1])
        node = node.args[0]
    return [-1] if len(lead) == 1 else None
