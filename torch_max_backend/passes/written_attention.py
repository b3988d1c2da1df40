"""Attention that a model writes out, softmax(q @ k^T * scale + mask) @ v, as one operator on CPU.

Matched is what AOTAutograd makes of it: two batched products of rank 3 around a softmax of rank 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.passes import operators  # noqa: F401  defines softmax_attention
from torch_max_backend.passes.matching import RESHAPES
from torch_max_backend.views import same_sizes

aten = torch.ops.aten

_KEEP_VALUES = (
    aten.alias.default,
    aten.clone.default,
    aten.expand.default,
    aten._to_copy.default,
    torch.ops.prims.convert_element_type.default,
)
_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


@dataclass
class _Scores:
    """scale * (query @ key^T) + mask over (batch, heads, length, keys)."""

    query: Node
    key: Node
    mask: Node | None
    scale: float


def fuse_written_attention(gm: GraphModule) -> None:
    """Replaces softmaxes of scaled products that are multiplied by values and used nowhere else."""
    fused = False
    for softmax in gm.graph.find_nodes(op="call_function", target=aten._softmax.default):
        scores = _scores_above(softmax)
        found = _product_below(softmax) if scores is not None else None
        if scores is None or found is None:
            continue
        value, result = found
        dtypes = {_dtype(node) for node in (scores.query, scores.key, value, result)}
        if len(dtypes) > 1 or not dtypes <= _DTYPES or result.meta["val"].device.type != "cpu":
            continue
        fused = True
        with gm.graph.inserting_before(result):
            key = gm.graph.call_function(aten.permute.default, (scores.key, [0, 1, 3, 2]))
            key.meta["val"] = scores.key.meta["val"].permute(0, 1, 3, 2)
            node = gm.graph.call_function(
                torch.ops.torch_max_backend.softmax_attention.default,
                (scores.query, key, value, scores.mask, scores.scale),
            )
        node.meta = dict(result.meta)
        result.replace_all_uses_with(node)
    if fused:
        gm.graph.eliminate_dead_code()
        gm.recompile()


def _scores_above(softmax: Node) -> _Scores | None:
    source, axis, _ = softmax.args
    shape = _shape(softmax)
    if len(shape) != 4 or axis not in (-1, 3):
        return None
    mask: Node | None = None
    scale = 1.0
    node: Any = source
    while not _is_product(node):
        if not isinstance(node, Node) or len(node.users) != 1 or not _has(node, shape):
            return None
        if _dtype(node) not in _DTYPES:
            return None
        if node.target in _KEEP_VALUES:
            node = node.args[0]
        elif node.target is aten.add.Tensor and mask is None and scale == 1 and not node.kwargs:
            a, b = node.args
            node, added = (a, b) if _may_be_scores(a) else (b, a)
            if not isinstance(added, Node) or _dtype(added) not in _DTYPES:
                return None
            mask = added
        elif (factor := _factor(node)) is not None:
            node, scale = node.args[0], scale * factor
        else:
            return None
    if not _has(node, shape) or len(node.users) != 1:
        return None
    product = node.args[0]
    batch, heads, length, keys = shape
    query = _operand(product.args[0], [batch, heads, length, None])
    key = _operand(product.args[1], [batch, heads, None, keys])
    if query is None or key is None or len(product.users) != 1:
        return None
    factor = _factor(query)
    if factor is not None and _has(query.args[0], _shape(query)):
        query, scale = query.args[0], scale * factor  # type: ignore[assignment]
    return _Scores(query, key, mask, scale)


def _product_below(softmax: Node) -> tuple[Node, Node] | None:
    """The (batch, heads, keys, width) values that the weights are multiplied by, and the result."""
    shape = _shape(softmax)
    node = softmax
    while True:
        if len(node.users) != 1:
            return None
        (user,) = node.users
        if user.target in RESHAPES:
            break
        if user.target not in _KEEP_VALUES or not _has(user, shape):
            return None
        node = user
    if len(user.users) != 1:
        return None
    (product,) = user.users
    if product.target is not aten.bmm.default or product.args[0] is not user:
        return None
    batch, heads, length, keys = shape
    value = _operand(product.args[1], [batch, heads, keys, None])
    if value is None or len(product.users) != 1:
        return None
    (result,) = product.users
    if not _is_product(result) or not _has(result, [batch, heads, length, _shape(value)[3]]):
        return None
    return value, result


def _is_product(node: Any) -> bool:
    """Whether the node gives a product its batch and heads back."""
    if not isinstance(node, Node) or node.target not in RESHAPES:
        return False
    product: Any = node.args[0]
    return product.target is aten.bmm.default and len(_shape(node)) == 4


def _may_be_scores(node: Any) -> bool:
    """Whether a chain of what is allowed above a softmax leads to a product."""
    while isinstance(node, Node) and (node.target in _KEEP_VALUES or _factor(node) is not None):
        node = node.args[0]
    return _is_product(node)


def _factor(node: Node) -> float | None:
    """The number that a node multiplies its first argument by."""
    if node.target not in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return None
    number = node.args[1]
    if not isinstance(number, int | float) or number == 0:
        return None
    return float(number) if node.target in (aten.mul.Tensor, aten.mul.Scalar) else 1 / number


def _operand(node: Any, shape: list[Any]) -> Node | None:
    """The (batch, heads, ., .) value of which a product's operand is a reshape."""
    if node.target not in RESHAPES:
        return None
    node = node.args[0]
    while node.target in (aten.clone.default, aten.expand.default):
        if not _has(node, _shape(node.args[0])):
            return None
        node = node.args[0]
    found = _shape(node)
    fits = len(found) == 4 and all(
        want is None or same_sizes([have], [want]) for have, want in zip(found, shape, strict=True)
    )
    return node if fits else None


def _shape(node: Any) -> list[Any]:
    return list(node.meta["val"].shape)


def _has(node: Any, shape: list[Any]) -> bool:
    return same_sizes(_shape(node), shape)


def _dtype(node: Node) -> torch.dtype:
    return node.meta["val"].dtype
