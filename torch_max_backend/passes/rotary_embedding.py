"""Rotary position embedding, x * cos + rotate_half(x) * sin, as one operator on CPU.

Attention rotates the rows of queries and keys as it reads them; by themselves the slices, the
negation, the concatenation and the sums are a kernel each. The rotation may be of the last tokens
alone, put behind the first ones again (DINOv3, Siméoni et al., 2025).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.dims import expression
from torch_max_backend.passes import operators  # noqa: F401  defines rotary_embedding
from torch_max_backend.views import View, same_sizes, same_view, view_of

aten = torch.ops.aten

_CASTS = (aten._to_copy.default, torch.ops.prims.convert_element_type.default)
_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


def fuse_rotary_embedding(gm: GraphModule) -> None:
    """Replaces such sums over (batch, heads, length, width), and what puts tokens before them."""
    fused = False
    for sum_ in gm.graph.find_nodes(op="call_function", target=aten.add.Tensor):
        operands = _rotation(sum_)
        if operands is None:
            continue
        fused = True
        result, x, sin, cos = _without_casts(sum_, *operands)
        joined = _behind_first_tokens(result, x)
        if joined is not None:
            result, x, first = joined
        else:
            first = 0
        with gm.graph.inserting_before(result):
            node = gm.graph.call_function(
                torch.ops.torch_max_backend.rotary_embedding.default, (x, sin, cos, first)
            )
        node.meta = dict(result.meta)
        result.replace_all_uses_with(node)
    if fused:
        gm.graph.eliminate_dead_code()
        gm.recompile()


def _rotation(sum_: Node) -> tuple[Node, Node, Node] | None:
    """x, sin and cos of x * cos + rotate_half(x) * sin. In this order: a sum is laid out as its
    first operand, which eager PyTorch's answer depends on in background mode."""
    result = sum_.meta["val"]
    if result.device.type != "cpu" or result.ndim != 4 or sum_.kwargs:
        return None
    straight, turned = sum_.args
    for half_turned, sin in _factors(turned):
        for x, cos in _factors(straight):
            if (
                _same_dtypes(sum_, x, half_turned)
                and _is_half_turn(half_turned, view_of(x))
                and _is_table(sin, x)
                and _is_table(cos, x)
                and same_sizes(sin.meta["val"].shape, cos.meta["val"].shape)
            ):
                return x, sin, cos
    return None


def _factors(node: Any) -> Iterator[tuple[Node, Node]]:
    """The two factors of a product, in both orders."""
    if isinstance(node, Node) and node.target is aten.mul.Tensor:
        a, b = node.args
        if isinstance(a, Node) and isinstance(b, Node):
            yield a, b
            yield b, a


def _same_dtypes(*nodes: Node) -> bool:
    dtypes = {node.meta["val"].dtype for node in nodes}
    return len(dtypes) == 1 and dtypes <= _DTYPES


def _is_half_turn(node: Node, x: View) -> bool:
    """Whether it is [-b, a] where x is [a, b] along the last axis."""
    width, parts = x.sizes[-1], _two_parts(node, 3)
    if parts is None or not isinstance(width, int) or width % 2:
        return False
    minus: Any
    minus, a = parts
    if minus.target is not aten.neg.default:
        return False
    half = [*x.sizes[:-1], width // 2]
    b = x.with_axes(half, x.strides, width // 2 * x.strides[-1])
    first = x.with_axes(half, x.strides)
    return same_view(view_of(a), first) and same_view(view_of(minus.args[0]), b)


def _two_parts(node: Node, axis: int) -> list[Node] | None:
    """What a node joins along that axis of four, if it does so to two."""
    arguments: Any = node.args
    if node.target is not aten.cat.default or len(arguments) < 2 or len(arguments[0]) != 2:
        return None
    return list(arguments[0]) if arguments[1] in (axis, axis - 4) else None


def _is_table(node: Node, x: Node) -> bool:
    """Whether its rows are those of x, for each batch and head or for all of them."""
    table, like = node.meta["val"], x.meta["val"]
    if table.dtype not in _DTYPES or table.device != like.device or table.ndim < 2:
        return False
    if not same_sizes(table.shape[-2:], like.shape[-2:]):
        return False
    lead = zip(reversed(table.shape[:-2]), reversed(like.shape[:-2]), strict=False)
    return all(expression(n) == 1 or same_sizes([n], [m]) for n, m in lead)


def _without_casts(result: Node, x: Node, sin: Node, cos: Node) -> tuple[Node, Node, Node, Node]:
    """The same between the casts of a rotation that is computed in a wider type than x has."""
    users = list(result.users)
    if x.target not in _CASTS or len(users) != 1 or users[0].target not in _CASTS:
        return result, x, sin, cos
    source: Any = x.args[0]
    narrow, wide = source.meta["val"].dtype, x.meta["val"].dtype
    widens = narrow in _DTYPES and torch.promote_types(narrow, wide) == wide
    if not widens or not _same_dtypes(source, users[0]):
        return result, x, sin, cos
    return users[0], source, sin, cos


def _behind_first_tokens(rotated: Node, tail: Node) -> tuple[Node, Node, int] | None:
    """The tokens of which only those of ``tail`` are rotated, joined again: the concatenation, all
    of them as they were and how many come first."""
    users = list(rotated.users)
    if len(users) != 1:
        return None
    parts = _two_parts(users[0], 2)
    if parts is None or parts[1] is not rotated:
        return None
    all_of_them = _sliced(tail)
    first = parts[0].meta["val"].shape[2]
    if all_of_them is None or not isinstance(first, int) or not _same_dtypes(parts[0], rotated):
        return None
    whole = view_of(all_of_them)
    batch, heads, length, width = whole.sizes
    head = whole.with_axes([batch, heads, first, width], whole.strides)
    rest = [batch, heads, length - first, width]
    behind = whole.with_axes(rest, whole.strides, first * whole.strides[2])
    if not same_view(view_of(parts[0]), head) or not same_view(view_of(tail), behind):
        return None
    return users[0], all_of_them, first


def _sliced(node: Node) -> Node | None:
    """What the node is a slice or a part of."""
    source: Any = node.args[0] if node.args else None
    if isinstance(source, Node) and source.target in (
        aten.split.Tensor,
        aten.split_with_sizes.default,
    ):
        source = source.args[0]
    return source if isinstance(source, Node) and source.meta["val"].ndim == 4 else None
