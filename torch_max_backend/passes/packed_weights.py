"""Weights that stay the same, packed as the products on CPU read them.

A product packs its right operand at each call; at batch 1 that is 3 to 4 % of a ViT's time. The
filters of a convolution are turned to channels-last before.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.cpu import target_features
from torch_max_backend.passes.matching import call, has_few_rows
from torch_max_backend.passes.patch_embedding import is_patches

aten = torch.ops.aten
ours = torch.ops.torch_max_backend

_NEEDED = {
    torch.float32: frozenset({""}),
    torch.bfloat16: frozenset({"avx512_bf16"}),
    torch.int8: frozenset({"avx512_vnni", "avx_vnni"}),
}
"""The types of weights, and one of which features multiplies what 32 bits hold of them at once."""


def pack_weights(gm: GraphModule, fixed: Container[Node]) -> None:
    """Replaces products with ``fixed`` right operands, and convolutions with such filters, by those
    of ``pack_weight``."""
    for node in list(gm.graph.nodes):
        if node.target is aten.convolution.default:
            _pack_filters(gm, node, fixed)
        elif node.target is ours.gated_linear.default:
            _pack_gated(gm, node, fixed)
        elif node.target is ours.mlp.default:
            _pack_mlp(gm, node, fixed)
        elif node.target is ours.self_attention.default:
            _pack_self_attention(gm, node, fixed)
        elif (layer := _layer(node)) is not None:
            _pack_layer(gm, node, layer, fixed)
    gm.recompile()


@dataclass(frozen=True)
class _Layer:
    """A product; the right operand is (N, K) where ``turned``, else (K, N)."""

    input: Any
    right: Any
    bias: Any = None
    turned: bool = False
    activation: str = "none"


def _layer(node: Node) -> _Layer | None:
    arguments: Any = node.args
    if node.target is ours.linear_activation.default:
        input, weight, bias = arguments
        return _Layer(input, weight, bias, turned=True, activation=str(node.kwargs["activation"]))
    if node.target is aten.addmm.default and not node.kwargs:
        bias, input, right = arguments
        is_row = bias.meta["val"].shape == right.meta["val"].shape[1:]
        return _Layer(input, right, bias) if is_row else None
    if node.target in (aten.mm.default, aten._int_mm.default):
        return _Layer(*arguments)
    return None


def _pack_layer(gm: GraphModule, node: Node, layer: _Layer, fixed: Container[Node]) -> None:
    if has_few_rows(node) or layer.right not in fixed or not _is_packable(layer.right):
        return
    with gm.graph.inserting_before(node):
        weight = layer.right
        if not layer.turned:
            weight = call(gm, aten.permute.default, weight, [1, 0])
        operands = _packed(gm, layer.input, weight, layer.bias)
        keywords: dict[str, Any] = {"activation": layer.activation}
        product = gm.graph.call_function(ours.packed_linear.default, operands, keywords)
    _replace(gm, node, product)


def _pack_gated(gm: GraphModule, node: Node, fixed: Container[Node]) -> None:
    input, weight, bias = node.args
    if weight not in fixed or not _is_packable(weight):  # type: ignore[arg-type]
        return
    with gm.graph.inserting_before(node):
        gates_first = node.kwargs["gates_first"]
        panels = call(gm, ours.pack_gated_weight.default, weight, gates_first)
        operands: Any = (input, panels, bias)
        product = gm.graph.call_function(
            ours.packed_gated_linear.default, operands, dict(node.kwargs)
        )
    _replace(gm, node, product)


def _pack_mlp(gm: GraphModule, node: Node, fixed: Container[Node]) -> None:
    *norm, weight, bias, out_weight, out_bias, scale = node.args
    if packed := _pack_all(gm, node, [weight, out_weight], fixed):
        first, last = packed
        _repeat_packed(gm, node, *norm, first, bias, last, out_bias, scale)


def _pack_self_attention(gm: GraphModule, node: Node, fixed: Container[Node]) -> None:
    *norm, weights, biases, out_weight, out_bias, scale, sin, cos, rows = node.args
    if packed := _pack_all(gm, node, [*weights, out_weight], fixed):  # type: ignore[misc]
        *first, last = packed
        _repeat_packed(gm, node, *norm, first, biases, last, out_bias, scale, sin, cos, rows)


def _pack_all(
    gm: GraphModule, node: Node, weights: Sequence[Any], fixed: Container[Node]
) -> list[Node] | None:
    """All of the weights of a node, or none."""
    if not all(weight in fixed and _is_packable(weight) for weight in weights):
        return None
    with gm.graph.inserting_before(node):
        return [call(gm, ours.pack_weight.default, weight) for weight in weights]


def _repeat_packed(gm: GraphModule, node: Node, *operands: Any) -> None:
    with gm.graph.inserting_before(node):
        keywords = {**node.kwargs, "packed": True}
        _replace(gm, node, gm.graph.call_function(node.target, operands, keywords))  # type: ignore


def _pack_filters(gm: GraphModule, node: Node, fixed: Container[Node]) -> None:
    arguments: Any = node.args
    input, weight, bias, stride, padding, dilation, transposed, _, groups = arguments
    plain = groups == 1 and not transposed and not is_patches(node)
    if not plain or weight not in fixed or not _is_packable(weight):
        return
    kernel = list(weight.meta["val"].shape[2:])
    steps = [list(n) * (len(kernel) if len(n) == 1 else 1) for n in (stride, padding, dilation)]
    with gm.graph.inserting_before(node):
        product = gm.graph.call_function(
            ours.packed_convolution.default, (*_packed(gm, input, weight, bias), kernel, *steps)
        )
    _replace(gm, node, product)


def _packed(gm: GraphModule, input: Any, weight: Node, bias: Any) -> tuple[Any, ...]:
    panels = call(gm, ours.pack_weight.default, weight)
    return input, panels, bias, weight.meta["val"].shape[0]


def _replace(gm: GraphModule, old: Node, new: Node) -> None:
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    gm.graph.erase_node(old)


def _is_packable(right: Node) -> bool:
    weight = right.meta["val"]
    if weight.device.type != "cpu" or not weight.numel():
        return False
    return not _NEEDED.get(weight.dtype, frozenset()).isdisjoint(target_features() | {""})
