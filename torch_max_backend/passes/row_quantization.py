"""Activations to int8 with a scale per row, as torchao writes it, as one operator on CPU.

Written out it goes through the activations eight times; the kernel does so once.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.context import is_zero
from torch_max_backend.passes import operators  # noqa: F401  defines quantize_rows
from torch_max_backend.views import same_sizes

aten = torch.ops.aten

_DTYPES = {torch.float32, torch.bfloat16}


@dataclass
class _Scale:
    """max(max(|source|) / divisor, eps) of rows: its node, and the first of those it is made of."""

    node: Node
    source: Node
    first: Node
    divisor: float
    eps: float


def fuse_row_quantization(gm: GraphModule) -> None:
    """Replaces scales of rows and the rounding of the rows, divided by them, to int8."""
    fused = False
    for numbers in gm.graph.find_nodes(op="call_function", target=aten._to_copy.default):
        scale = _scale_of(numbers)
        if scale is None:
            continue
        fused = True
        _replace(gm, numbers, scale)
    if fused:
        gm.graph.eliminate_dead_code()
        gm.recompile()


def _replace(gm: GraphModule, numbers: Node, scale: _Scale) -> None:
    graph, source = gm.graph, scale.source
    with graph.inserting_before(scale.first):
        both = graph.call_function(
            torch.ops.torch_max_backend.quantize_rows.default,
            (source, scale.divisor, scale.eps),
        )
        new_numbers, new_scale = (
            graph.call_function(operator.getitem, (both, place)) for place in (0, 1)
        )
        values = source.meta["val"].to(torch.int8), scale.node.meta["val"].to(torch.float32)
        both.meta = {**numbers.meta, "val": values}
        new_numbers.meta = {**numbers.meta, "val": values[0]}
        new_scale.meta = {**scale.node.meta, "val": values[1]}
        if scale.node.meta["val"].dtype != torch.float32:
            wide = new_scale
            dtype = scale.node.meta["val"].dtype
            new_scale = graph.call_function(aten._to_copy.default, (wide,), {"dtype": dtype})
            new_scale.meta = dict(scale.node.meta)
    numbers.replace_all_uses_with(new_numbers)
    scale.node.replace_all_uses_with(new_scale)


def _scale_of(numbers: Node) -> _Scale | None:
    """The scale, where a node is clamp(round(source * (1 / scale)), -128, 127) as int8."""
    if numbers.meta["val"].dtype != torch.int8:
        return None
    limited, *limits = _arguments(_viewed(numbers.args[0]), aten.clamp.default) or (None,)
    rounded, *offset = _arguments(limited, aten.add.Tensor) or (limited,)
    (product,) = _arguments(rounded, aten.round.default) or (None,)
    source, factor = _arguments(product, aten.mul.Tensor) or (None, None)
    inverse, *one = _arguments(factor, aten.mul.Tensor) or (factor,)
    (divided_by,) = _arguments(inverse, aten.reciprocal.default) or (None,)
    if limits != [-128, 127] or one not in ([], [1.0]) or not all(map(is_zero, offset)):
        return None
    scale = _scale(_viewed(divided_by, aten._to_copy.default))
    if scale is None or _viewed(source) is not _viewed(scale.source):
        return None
    shapes = [_sizes(node) for node in (source, scale.source, numbers)]
    if not (same_sizes(shapes[0], shapes[1]) and same_sizes(shapes[1], shapes[2])):
        return None
    if product is None or product.meta["val"].dtype != torch.float32:
        return None
    value = scale.source.meta["val"]
    return scale if value.device.type == "cpu" and value.dtype in _DTYPES else None


def _scale(node: Any) -> _Scale | None:
    divided, *eps = _arguments(node, aten.clamp.default) or (None,)
    magnitude, *divisor = _arguments(divided, aten.div.Tensor) or (None,)
    negated, most = _arguments(magnitude, aten.maximum.default) or (None, None)
    (least,) = _arguments(negated, aten.neg.default) or (None,)
    smallest, *zero = _arguments(least, aten.minimum.default) or (None,)
    largest, *other_zero = _arguments(most, aten.maximum.default) or (None,)
    reduced = _arguments(smallest, aten.amin.default)
    if smallest is None or largest is None or reduced is None:
        return None
    if reduced != _arguments(largest, aten.amax.default):
        return None
    numbers = [*divisor, *eps]
    if len(numbers) != 2 or not all(isinstance(number, float) for number in numbers):
        return None
    if len(reduced) != 3 or not reduced[2] or not all(map(is_zero, zero + other_zero)):
        return None
    if reduced[1] not in ([-1], [len(_sizes(reduced[0])) - 1]):
        return None
    first = min(smallest, largest)
    return _Scale(node, reduced[0], first, *numbers)


def _arguments(node: Any, target: Any) -> Any:
    """The arguments of a call of ``target``; None for anything else."""
    return node.args if isinstance(node, Node) and node.target is target else None


def _viewed(node: Any, *further: Any) -> Any:
    """What a node reshapes."""
    while isinstance(node, Node) and node.target in (aten.view.default, *further):
        node = node.args[0]
    return node


def _sizes(node: Any) -> Any:
    return node.meta["val"].shape
