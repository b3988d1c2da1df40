"""Activations to int8 with a scale per row, as torchao writes it, as one operator on CPU.

Written out it goes through the numbers eight times, the kernel does once; a GELU or SiLU before it
is computed on the way.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.context import is_zero
from torch_max_backend.passes import operators  # noqa: F401  defines quantize_rows
from torch_max_backend.passes.matching import activation_of, arguments
from torch_max_backend.views import same_sizes

aten = torch.ops.aten

_DTYPES = {torch.float32, torch.bfloat16}


@dataclass
class _Scale:
    """max(max(|source|) / divisor, eps) of rows: its node and what it is made of."""

    node: Node
    source: Node
    reductions: tuple[Node, Node]
    divisor: float
    eps: float


@dataclass
class _Quantization:
    """clamp(round(product), -128, 127) as int8; the product is that of the source and 1 / scale."""

    numbers: Node
    product: Node
    scale: _Scale


def fuse_row_quantization(gm: GraphModule) -> None:
    """Replaces scales of rows and the rounding of the rows, divided by them, to int8."""
    fused = False
    for node in gm.graph.find_nodes(op="call_function", target=aten._to_copy.default):
        found = _quantization(node)
        if found is None:
            continue
        fused = True
        with gm.graph.inserting_before(min(found.scale.reductions)):
            _replace(gm, found)
    if fused:
        gm.graph.eliminate_dead_code()
        gm.recompile()


def _replace(gm: GraphModule, found: _Quantization) -> None:
    graph, scale = gm.graph, found.scale
    rows, activation = _before_activation(gm, found)
    both = graph.call_function(
        torch.ops.torch_max_backend.quantize_rows.default,
        (rows, scale.divisor, scale.eps),
        {"activation": activation},
    )
    numbers = graph.call_function(operator.getitem, (both, 0))
    scales = graph.call_function(operator.getitem, (both, 1))
    numbers.meta = {**found.numbers.meta, "val": scale.source.meta["val"].to(torch.int8)}
    scales.meta = {**scale.node.meta, "val": scale.node.meta["val"].to(torch.float32)}
    both.meta = {**numbers.meta, "val": (numbers.meta["val"], scales.meta["val"])}
    dtype = scale.node.meta["val"].dtype
    if dtype != torch.float32:
        scales = graph.call_function(aten._to_copy.default, (scales,), {"dtype": dtype})
        scales.meta = dict(scale.node.meta)
    found.numbers.replace_all_uses_with(numbers)
    scale.node.replace_all_uses_with(scales)


def _before_activation(gm: GraphModule, found: _Quantization) -> tuple[Any, str]:
    """What the kernel reads and what it computes of it first: the argument of an activation whose
    result is used for nothing else."""
    source = found.scale.source
    node = source.args[0] if source.target is aten.view.default else source
    activated = activation_of(node)
    if not isinstance(node, Node) or activated is None:
        return source, "none"
    activation, value = activated
    views = [user for user in node.users if user.target is aten.view.default]
    users = {user for place in (node, *views) for user in place.users}
    if users != {*views, *found.scale.reductions, found.product}:
        return source, "none"
    if source is node:
        return value, activation
    view = gm.graph.call_function(aten.view.default, (value, source.args[1]))
    view.meta = dict(source.meta)
    return view, activation


def _quantization(numbers: Node) -> _Quantization | None:
    if numbers.meta["val"].dtype != torch.int8:
        return None
    limited, *limits = arguments(_viewed(numbers.args[0]), aten.clamp.default) or (None,)
    rounded, *offset = arguments(limited, aten.add.Tensor) or (limited,)
    (product,) = arguments(rounded, aten.round.default) or (None,)
    source, factor = arguments(product, aten.mul.Tensor) or (None, None)
    inverse, *one = arguments(factor, aten.mul.Tensor) or (factor,)
    (divided_by,) = arguments(inverse, aten.reciprocal.default) or (None,)
    if limits != [-128, 127] or one not in ([], [1.0]) or not all(map(is_zero, offset)):
        return None
    scale = _scale(_viewed(divided_by, aten._to_copy.default))
    if scale is None or _viewed(source) is not _viewed(scale.source):
        return None
    shapes = [_value(node).shape for node in (source, scale.source, numbers)]
    if not (same_sizes(shapes[0], shapes[1]) and same_sizes(shapes[1], shapes[2])):
        return None
    value = _value(scale.source)
    if value.device.type != "cpu" or value.dtype not in _DTYPES:
        return None
    if product is None or _value(product).dtype != torch.float32:
        return None
    return _Quantization(numbers, product, scale)


def _scale(node: Any) -> _Scale | None:
    divided, *eps = arguments(node, aten.clamp.default) or (None,)
    magnitude, *divisor = arguments(divided, aten.div.Tensor) or (None,)
    negated, most = arguments(magnitude, aten.maximum.default) or (None, None)
    (least,) = arguments(negated, aten.neg.default) or (None,)
    smallest, *zero = arguments(least, aten.minimum.default) or (None,)
    largest, *other_zero = arguments(most, aten.maximum.default) or (None,)
    reduced = arguments(smallest, aten.amin.default)
    if smallest is None or largest is None or reduced is None:
        return None
    if reduced != arguments(largest, aten.amax.default) or len(reduced) != 3 or not reduced[2]:
        return None
    source, axes, _ = reduced
    if axes not in ([-1], [_value(source).ndim - 1]) or not all(map(is_zero, zero + other_zero)):
        return None
    numbers = [*divisor, *eps]
    if len(numbers) != 2 or not all(isinstance(number, float) for number in numbers):
        return None
    return _Scale(node, source, (smallest, largest), *numbers)


def _viewed(node: Any, *further: Any) -> Any:
    """What a node reshapes."""
    while isinstance(node, Node) and node.target in (aten.view.default, *further):
        node = node.args[0]
    return node


def _value(node: Any) -> Any:
    return node.meta["val"]
