"""The self-attention of a transformer's block as one kernel on CPU: a norm, the layers of queries,
keys and values, perhaps rotary positions, attention, a linear layer, the residual connection. A
kernel for each takes longer where a model is small and rows are few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.passes.linear_activation import linear_operands
from torch_max_backend.passes.matching import RESHAPES, only_feeds
from torch_max_backend.passes.operators import PANEL
from torch_max_backend.passes.residual_branch import (
    Branch,
    Norm,
    have_sizes,
    norm_of,
    replace,
    residual_branches,
    source_of,
)
from torch_max_backend.views import VIEWS, same_sizes, same_view, view_of

aten = torch.ops.aten
ours = torch.ops.torch_max_backend

_SWAPS: dict[Any, tuple[Any, ...]] = {
    aten.permute.default: ([0, 2, 1, 3],),
    aten.transpose.int: (1, 2),
}
_ON_THE_WAY = VIEWS | {ours.rotary_embedding.default}


def fuse_self_attention(gm: GraphModule) -> None:
    """Replaces x + layer(attention among norm(x)) where nothing else uses what is in between."""
    fused = False
    for branch in residual_branches(gm):
        attention = _attention_of(branch)
        rotated = _rotated(attention) if attention is not None else None
        if attention is None or rotated is None:
            continue
        operands, rotation = rotated
        layers = _layers(operands, attention, branch.x)
        norm = _norm_of(layers)
        if norm is None or norm.x is not branch.x:
            continue
        columns = branch.x.meta["val"].shape[-1]
        rows = 3 * columns if len(layers) == 1 else columns
        projections = [(weight, rows, columns) for _, weight, _ in layers.values()]
        if not have_sizes(*projections, (branch.weight, columns, columns)):
            continue
        replace(
            gm,
            branch,
            ours.self_attention.default,
            *(norm.x, norm.gain, norm.shift, norm.eps),
            [weight for _, weight, _ in layers.values()],
            [bias for _, _, bias in layers.values()],
            *(branch.weight, branch.bias, branch.scale, *rotation),
            heads=attention.meta["val"].shape[1],
            score_scale=attention.args[5],
            is_causal=attention.args[4],
            centred=norm.centred,
        )
        fused = True
    if fused:
        gm.graph.eliminate_dead_code()
        gm.recompile()


def _attention_of(branch: Branch) -> Node | None:
    """The attention without mask whose heads, side by side, are what the layer reads."""
    swapped = source_of(branch.input)
    if swapped is None or swapped.target not in _SWAPS:
        return None
    if swapped.args[1:] != _SWAPS[swapped.target]:
        return None
    heads: Any = swapped.args[0]
    attention = source_of(heads)
    if attention is None or attention.target is not ours.attention.default:
        return None
    result, columns = attention.meta["val"].shape, branch.input.meta["val"].shape[-1]
    whole = same_sizes(heads.meta["val"].shape, result) and result[1] * result[3] == columns
    return attention if whole and attention.args[3] is None else None


def _rotated(attention: Node) -> tuple[list[Any], Sequence[Any]] | None:
    """Queries, keys and values before queries and keys are rotated; sines, cosines and the first
    row of that. None where only one of them is, or by other angles."""
    operands: list[Any] = list(attention.args[:3])
    rotations: list[Sequence[Any]] = []
    for i, node in enumerate(operands[:2]):
        if node.target is ours.rotary_embedding.default and len(node.users) == 1:
            operands[i], *rotation = node.args
            rotations.append(rotation)
    if not rotations:
        return operands, (None, None, 0)
    if len(rotations) == 1 or rotations[0][2] != rotations[1][2]:
        return None
    same = all(same_view(view_of(rotations[0][i]), view_of(rotations[1][i])) for i in range(2))
    return (operands, rotations[0]) if same else None


def _layers(operands: Sequence[Node], attention: Node, x: Node) -> dict[Node, Any]:
    """The linear layers whose results are queries, keys and values of x's sizes, one each or one
    for all, and nothing else; with their operands. None of them where others are."""
    value = x.meta["val"]
    views = [view_of(node) for node in operands]
    bases = list(dict.fromkeys(view.base for view in views))
    columns = value.shape[-1]
    if value.ndim != 3 or len(bases) == 2 or not isinstance(columns, int) or columns % PANEL:
        return {}
    batch, length, _ = value.shape
    _, heads, _, width = attention.meta["val"].shape
    row = 3 * columns if len(bases) == 1 else columns
    for i, view in enumerate(views):
        offset = i * columns if len(bases) == 1 else 0
        layout = [length * row, width, row, 1, offset]
        if len(view.sizes) != 4 or not same_sizes(view.sizes, [batch, heads, length, width]):
            return {}
        if not same_sizes([*view.strides, view.offset], layout):
            return {}
    layers = {base: linear_operands(base) for base in bases}
    alone = all(only_feeds(base, {attention}, _ON_THE_WAY) for base in bases)
    return layers if alone and None not in layers.values() else {}


def _norm_of(layers: dict[Node, Any]) -> Norm | None:
    """The norm whose result is what all of them read, and nothing else does."""
    inputs = [view_of(input) for input, _, _ in layers.values()]
    sources = {view.base for view in inputs}
    if len(sources) != 1 or not all(view.dense() for view in inputs):
        return None
    (normalized,) = sources
    alone = only_feeds(normalized, set(layers), RESHAPES)
    return norm_of(normalized) if alone else None
