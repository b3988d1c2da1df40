"""Of which rows of its operands an operator makes some rows of its result: a rule for each operator
that treats rows alone, or needs others of only some of its operands."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from torch_max_backend.composites import attention, normalization  # noqa: F401  define theirs
from torch_max_backend.passes import operators  # noqa: F401  defines others of ours
from torch_max_backend.views import argument, same_sizes

aten = torch.ops.aten
ours = torch.ops.torch_max_backend


@dataclass(frozen=True)
class Rows:
    """Those from ``start`` to ``stop`` of every ``length`` along an axis: of the whole axis, or, if
    it is the first one, of each of several sequences that follow each other there."""

    axis: int
    length: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.start

    def along(self, axis: int) -> Rows:
        """The same along another axis."""
        return replace(self, axis=axis)

    def is_joined(self, shape: Sequence[Any]) -> bool:
        """Whether the axis has several sequences."""
        size = shape[self.axis]
        return not (isinstance(size, int) and size == self.length)


Take: TypeAlias = Callable[[Any, Rows], Any]
"""Gives those rows of an operand."""
Call: TypeAlias = tuple[Any, tuple[Any, ...]]
"""An operator and its positional arguments."""
Rule: TypeAlias = Callable[[Node, Rows, Take], Call | None]
"""What computes rows of a node's result; None, before any is taken, where they are not known."""


def rule_of(node: Node) -> Rule | None:
    """The rule of a node that has one."""
    if any(isinstance(value, Node) for value in node.kwargs.values()):
        return None
    if node.target in _RULES:
        return _RULES[node.target]
    tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else []
    is_random = torch.Tag.nondeterministic_seeded in tags
    is_pointwise = torch.Tag.pointwise in tags and _is_tensor(node)
    return _pointwise if is_pointwise and not is_random else None


def read_rows(node: Node, take: Take) -> Call | None:
    """The rows that a node reads, whatever is wanted of its own result; None where it is no slice
    or reads all."""
    if node.target not in (aten.select.int, aten.slice.Tensor):
        return None
    source = _args(node)[0]
    axis, span = _span(node)
    length = _shape(source)[axis]
    if span is None or span[1] - span[0] == length:
        return None
    rows = take(source, Rows(axis, length, *span))
    if node.target is aten.select.int:
        return aten.select.int, (rows, axis, 0)
    return aten.alias.default, (rows,)


def _span(node: Node) -> tuple[int, tuple[int, int] | None]:
    """The axis that a node slices, and from where to where; None if only a run tells that."""
    shape = _shape(_args(node)[0])
    axis: Any = argument(node, 1, "dim", 0) % len(shape)
    length = shape[axis]
    if node.target is aten.select.int:
        start: Any = argument(node, 2, "index", 0)
        if not (isinstance(length, int) and isinstance(start, int)):
            return axis, None
        start %= length
        return axis, (start, start + 1)
    start, stop = argument(node, 2, "start"), argument(node, 3, "end")
    start, stop = 0 if start is None else start, length if stop is None else stop
    if not all(isinstance(n, int) for n in (length, start, stop)):
        return axis, None
    if argument(node, 4, "step", 1) != 1:
        return axis, None
    start, stop, _ = slice(start, stop).indices(length)
    return axis, (start, stop) if start < stop else None


def _pointwise(node: Node, rows: Rows, take: Take) -> Call | None:
    shape = _shape(node)
    wanted: list[Rows | None] = []
    for x in node.args:
        sizes = _shape(x) if _is_tensor(x) else []
        axis = rows.axis - (len(shape) - len(sizes))
        broadcast = axis < 0 or same_sizes([sizes[axis]], [1])
        if not broadcast and not same_sizes([sizes[axis]], [shape[rows.axis]]):
            return None
        wanted.append(None if broadcast else rows.along(axis))
    pairs = zip(node.args, wanted, strict=True)
    return node.target, tuple(x if w is None else take(x, w) for x, w in pairs)


def _normalization(node: Node, rows: Rows, take: Take) -> Call | None:
    x, shape, *rest = _args(node)
    if rows.axis >= len(_shape(x)) - len(shape):
        return None
    return node.target, (take(x, rows), shape, *rest)


def _softmax(node: Node, rows: Rows, take: Take) -> Call | None:
    x, axis, *rest = _args(node)
    if axis % len(_shape(x)) == rows.axis:
        return None
    return node.target, (take(x, rows), axis, *rest)


def _reduction(node: Node, rows: Rows, take: Take) -> Call | None:
    """Only one that keeps its axes."""
    x, axes = _args(node)[0], argument(node, 1, "dim")
    if not argument(node, 2, "keepdim", False) or not axes:
        return None
    if rows.axis in [axis % len(_shape(x)) for axis in axes]:
        return None
    return node.target, (take(x, rows), *_args(node)[1:])


def _product(node: Node, rows: Rows, take: Take) -> Call | None:
    """mm, addmm: rows of the left operand."""
    *bias, left, right = _args(node)
    if rows.axis != 0 or any(len(_shape(b)) != 1 for b in bias):
        return None
    return node.target, (*bias, take(left, rows), right)


def _batched_product(node: Node, rows: Rows, take: Take) -> Call | None:
    left, right = _args(node)
    return (node.target, (take(left, rows), right)) if rows.axis == 1 else None


def _attention(node: Node, rows: Rows, take: Take) -> Call | None:
    """Rows of queries, for which all keys and values are needed."""
    query, key, value, mask, *rest = _args(node)
    on_cpu = node.meta["val"].device.type == "cpu"  # of MAX's kernel for GPUs few are not tested
    if not on_cpu or rows.axis != len(_shape(query)) - 2:
        return None
    if node.target is ours.attention.default and rest[0] and rows.start > 0:  # causal
        is_last = rows.start == rows.length - 1 == _shape(key)[-2] - 1
        if not is_last:
            return None
        rest[0] = False  # the last one sees all keys
    if mask is not None:
        sizes = _shape(mask)
        axis = len(sizes) - 2
        if axis >= 0 and not same_sizes([sizes[axis]], [1]):
            mask = take(mask, rows.along(axis))
    return node.target, (take(query, rows), key, value, mask, *rest)


def _rotation(node: Node, rows: Rows, take: Take) -> Call | None:
    """Rows of one kind: those of the first, which stay as they are, or of the others."""
    x, sin, cos, first = _args(node)
    if rows.axis != len(_shape(x)) - 2 or rows.start < first < rows.stop:
        return None
    if rows.stop <= first:
        return aten.alias.default, (take(x, rows),)
    angles = replace(
        rows,
        axis=len(_shape(sin)) - 2,
        length=rows.length - first,
        start=rows.start - first,
        stop=rows.stop - first,
    )
    return node.target, (take(x, rows), take(sin, angles), take(cos, angles), 0)


def _reshape(node: Node, rows: Rows, take: Take) -> Call | None:
    x, given = _args(node)
    shape, sizes = _shape(node), list(given)
    axis = _axis_of_rows(shape, rows, _shape(x))
    if axis is None:
        return None
    if rows.is_joined(shape):
        if not all(isinstance(n, int) for n in shape[1:]):
            return None
        sizes = [-1, *shape[1:]]
    else:
        sizes[rows.axis] = rows.count
    return node.target, (take(x, rows.along(axis)), sizes)


def _axis_of_rows(shape: Sequence[Any], rows: Rows, source: Sequence[Any]) -> int | None:
    """The axis along which the same numbers are rows in another shape."""
    behind = prod(shape[rows.axis + 1 :])
    for axis, size in enumerate(source):
        whole = isinstance(size, int) and size == rows.length
        if same_sizes([prod(source[axis + 1 :])], [behind]) and (whole or axis == 0):
            return axis
    return None


def _expansion(node: Node, rows: Rows, take: Take) -> Call | None:
    x, given = _args(node)
    shape, source, sizes = _shape(node), _shape(x), list(given)
    axis = rows.axis - (len(shape) - len(source))
    if rows.is_joined(shape):
        return None
    sizes[rows.axis] = rows.count
    repeated = axis < 0 or same_sizes([source[axis]], [1])
    return node.target, (x if repeated else take(x, rows.along(axis)), sizes)


def _permutation(node: Node, rows: Rows, take: Take) -> Call | None:
    x, *rest = _args(node)
    order = list(range(len(_shape(x))))
    if node.target is aten.permute.default:
        order = [order[axis] for axis in rest[0]]
    elif len(order) > 1:
        a, b = rest if rest else (0, 1)
        order[a], order[b] = order[b], order[a]
    return _along(node, rows, take, order[rows.axis])


def _unsqueeze(node: Node, rows: Rows, take: Take) -> Call | None:
    added = argument(node, 1, "dim") % len(_shape(node))
    return _along(node, rows, take, rows.axis - (rows.axis > added))


def _squeeze(node: Node, rows: Rows, take: Take) -> Call | None:
    x, dims = _args(node)
    shape = _shape(x)
    axes = {axis % len(shape) for axis in ([dims] if isinstance(dims, int) else dims)}
    kept = [i for i, n in enumerate(shape) if i not in axes or not same_sizes([n], [1])]
    return _along(node, rows, take, kept[rows.axis])


def _select(node: Node, rows: Rows, take: Take) -> Call | None:
    """Also of unbind: rows of a part."""
    x = _args(node)[0]
    gone = argument(node, 1, "dim", 0) % len(_shape(x))
    return _along(node, rows, take, rows.axis + (rows.axis >= gone))


def _slice(node: Node, rows: Rows, take: Take) -> Call | None:
    axis, span = _span(node)
    if axis != rows.axis:
        return _along(node, rows, take, rows.axis)
    length = _shape(_args(node)[0])[axis]
    if span is None or rows.is_joined(_shape(node)):
        return None
    start = span[0] + rows.start
    taken = take(_args(node)[0], Rows(axis, length, start, start + rows.count))
    return aten.alias.default, (taken,)


def _part(node: Node, rows: Rows, take: Take) -> Call | None:
    """Rows of one of several results, whose rows have the same axis."""
    results, index = _args(node)
    rule = rule_of(results)
    known = rule is not None and rule(results, rows, lambda x, _: x) is not None
    return (node.target, (take(results, rows), index)) if known else None


def _parts(node: Node, rows: Rows, take: Take) -> Call | None:
    """Rows of every part."""
    axis = argument(node, 2, "dim", 0) % len(_shape(_args(node)[0]))
    return _along(node, rows, take, rows.axis) if axis != rows.axis else None


def _concatenation(node: Node, rows: Rows, take: Take) -> Call | None:
    parts = _args(node)[0]
    axis = argument(node, 1, "dim", 0) % len(_shape(node))
    alike = all(len(_shape(x)) == len(_shape(node)) for x in parts)  # (0,) may be among them
    if axis == rows.axis or not alike:
        return None
    return node.target, ([take(x, rows) for x in parts], axis)


def _along(node: Node, rows: Rows, take: Take, axis: int) -> Call | None:
    """The same operator on rows along an axis of its first operand."""
    x = _args(node)[0]
    rows = rows.along(axis)
    if axis > 0 and rows.is_joined(_shape(x)):
        return None
    return node.target, (take(x, rows), *_args(node)[1:])


def _args(node: Node) -> Any:
    return node.args


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Node) and isinstance(x.meta.get("val"), Tensor)


def _shape(x: Any) -> list[Any]:
    return list(x.meta["val"].shape)


_RULES: dict[Any, Rule] = {
    aten._int_mm.default: _product,
    aten._log_softmax.default: _softmax,
    aten._softmax.default: _softmax,
    aten._to_copy.default: _pointwise,
    aten._unsafe_view.default: _reshape,
    aten.addmm.default: _product,
    aten.alias.default: _pointwise,
    aten.amax.default: _reduction,
    aten.amin.default: _reduction,
    aten.bmm.default: _batched_product,
    aten.cat.default: _concatenation,
    aten.expand.default: _expansion,
    aten.full_like.default: _pointwise,
    aten.mean.dim: _reduction,
    aten.mm.default: _product,
    aten.native_layer_norm.default: _normalization,
    aten.permute.default: _permutation,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.split.Tensor: _parts,
    aten.split_with_sizes.default: _parts,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.sum.dim_IntList: _reduction,
    aten.t.default: _permutation,
    aten.transpose.int: _permutation,
    aten.unbind.int: _select,
    aten.unsqueeze.default: _unsqueeze,
    aten.view.default: _reshape,
    operator.getitem: _part,
    torch.ops.prims.convert_element_type.default: _pointwise,
    ours.attention.default: _attention,
    ours.quick_gelu.default: _pointwise,
    ours.rms_norm.default: _normalization,
    ours.rotary_embedding.default: _rotation,
    ours.softmax_attention.default: _attention,
}
PRODUCTS = frozenset(
    {
        aten._int_mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.mm.default,
        ours.attention.default,
        ours.softmax_attention.default,
    }
)
"""What takes the time."""
