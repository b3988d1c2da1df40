"""Keys and values that few queries meet are not made.

A query q scores x, of which the key is K x, by q . (K x) = (K^T q) . x, and the sum of values V x,
weighted, is V times the weighted sum of x. One query a head, of a class token, needs so a product
with each weight where keys and values of all tokens need two hundred: that is a sixth of a block.
What a bias adds to the keys is the same for all scores of a query, which softmax takes off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.composites import attention  # noqa: F401  defines attention
from torch_max_backend.passes.matching import call, layer_operands, only_feeds
from torch_max_backend.views import VIEWS, same_sizes, same_view, transposed, view_of

aten = torch.ops.aten
ours = torch.ops.torch_max_backend

_LARGEST_SHARE = 0.5
"""Of the products that are left out, what may take their place."""


def attend_to_inputs(gm: GraphModule) -> None:
    """Replaces attention of few queries to keys and values that linear layers make for it alone,
    on CPU: kernels for GPUs have no heads as wide as a model."""
    replaced = False
    for node in gm.graph.find_nodes(op="call_function", target=ours.attention.default):
        query, key, value, mask, causal, scale, _ = node.args
        keys, values = _layer(key, node), _layer(value, node)
        on_cpu = node.meta["val"].device.type == "cpu"
        if not on_cpu or mask is not None or causal or keys is None or values is None:
            continue
        same = same_view(view_of(keys.input), view_of(values.input))
        if not same or not keys.pays(query):
            continue
        with gm.graph.inserting_before(node):
            result = _attended(gm, query, keys, values, scale)
        result.meta = {**node.meta, **result.meta}
        node.replace_all_uses_with(result)
        replaced = True
    if replaced:
        gm.graph.eliminate_dead_code()
        gm.recompile()


@dataclass(frozen=True)
class _Layer:
    """What makes (B, H, N, E) of an input (B N, D): the columns from ``start`` on of a linear
    layer."""

    input: Node
    weight: Node
    bias: Node | None
    start: int
    heads: int
    length: int
    width: int

    @property
    def depth(self) -> int:
        return int(self.weight.meta["val"].shape[1])

    def pays(self, query: Node) -> bool:
        """Whether so few queries (B, H, L, E) take less than these columns."""
        _, heads, queries, width = query.meta["val"].shape
        if not isinstance(queries, int) or (heads, width) != (self.heads, self.width):
            return False
        instead = heads * queries * (self.length + width)
        return instead <= _LARGEST_SHARE * self.length * heads * width


def _layer(heads: Any, reader: Node) -> _Layer | None:
    view = view_of(heads)
    product = view.base
    operands = layer_operands(product)
    if operands is None or len(view.sizes) != 4:
        return None
    bias, left, right = operands
    weight, total = transposed(right), product.meta["val"].shape
    if weight is None:
        return None
    batch, count, length, width = view.sizes
    known = (*weight.meta["val"].shape, view.offset, count, length, width)
    layout = [length * total[1], width, total[1], 1]
    if not all(isinstance(n, int) for n in known):
        return None
    if not same_sizes([total[0]], [batch * length]) or not view_of(left).dense():
        return None
    several = [axis for axis in range(4) if not same_sizes([view.sizes[axis]], [1])]
    if not same_sizes(*([steps[axis] for axis in several] for steps in (view.strides, layout))):
        return None
    if not only_feeds(product, {reader}, VIEWS):
        return None
    return _Layer(left, weight, bias, view.offset, count, length, width)  # type: ignore[arg-type]


def _attended(gm: GraphModule, query: Node, keys: _Layer, values: _Layer, scale: Any) -> Node:
    """(B, H, L, E), laid out as by attention whose queries are columns of a linear layer: queries
    of all heads are those of one, whose keys and values are the tokens."""
    _, heads, length, width = query.meta["val"].shape
    depth = keys.depth
    rows = _by_head(gm, call(gm, aten.permute.default, query, [0, 2, 1, 3]))
    rows = _by_image(gm, call(gm, aten.bmm.default, rows, _weight(gm, keys)), length)
    rows = call(gm, aten.view.default, rows, [-1, 1, length * heads, depth])
    x = call(gm, aten.view.default, keys.input, [-1, 1, keys.length, depth])
    rows = call(gm, ours.attention.default, rows, x, x, None, False, scale, False)
    rows = _by_head(gm, call(gm, aten.view.default, rows, [-1, length, heads, depth]))
    weight = call(gm, aten.permute.default, _weight(gm, values), [0, 2, 1])
    rows = call(gm, aten.bmm.default, rows, weight)
    if values.bias is not None:
        bias = call(gm, aten.view.default, _columns(gm, values.bias, values), [heads, 1, width])
        rows = call(gm, aten.add.Tensor, rows, bias)
    return call(gm, aten.permute.default, _by_image(gm, rows, length), [0, 2, 1, 3])


def _weight(gm: GraphModule, layer: _Layer) -> Node:
    """(H, E, D), a matrix for each head."""
    rows = _columns(gm, layer.weight, layer)
    shape = [layer.heads, layer.width, layer.depth]
    return call(gm, aten.clone.default, call(gm, aten.view.default, rows, shape))


def _columns(gm: GraphModule, x: Node, layer: _Layer) -> Node:
    """What of a weight or bias makes the layer's columns."""
    stop = layer.start + layer.heads * layer.width
    return call(gm, aten.slice.Tensor, x, 0, layer.start, stop)


def _by_head(gm: GraphModule, x: Node) -> Node:
    """(B, L, H, E) as (H, B L, E)."""
    _, _, heads, width = x.meta["val"].shape
    turned = _dense(gm, call(gm, aten.permute.default, x, [2, 0, 1, 3]))
    return call(gm, aten.view.default, turned, [heads, -1, width])


def _by_image(gm: GraphModule, x: Node, length: int) -> Node:
    """(H, B L, E) as (B, L, H, E)."""
    heads, _, width = x.meta["val"].shape
    apart = call(gm, aten.view.default, x, [heads, -1, length, width])
    return _dense(gm, call(gm, aten.permute.default, apart, [1, 2, 0, 3]))


def _dense(gm: GraphModule, x: Node) -> Node:
    return call(gm, aten.clone.default, x, memory_format=torch.contiguous_format)
