"""Where the numbers of a view lie: a tensor's address arithmetic, read from the graph.

A kernel of ours takes an operand as its base, an offset and strides, so that the slices and
permutations between a projection and its attention, or a weight and its product, are not copied.
MAX keeps every value dense; what is derived here therefore starts at the first node that is not
a view and speaks of its dense result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from torch_max_backend.dims import expression

aten = torch.ops.aten
Size: TypeAlias = int | torch.SymInt


@dataclass(frozen=True)
class View:
    """Element (i, j, ...) is number offset + i * strides[0] + j * strides[1] + ... of the base."""

    base: Node
    sizes: tuple[Size, ...]
    strides: tuple[Size, ...]
    offset: Size = 0

    def dense(self) -> bool:
        """Whether the numbers follow each other in the order of the axes."""
        return same_sizes(self.strides, dense_strides(self.sizes))

    def with_axes(self, sizes: Sequence[Size], strides: Sequence[Size], skip: Size = 0) -> View:
        """Other axes over the same base, ``skip`` numbers further on."""
        return View(self.base, tuple(sizes), tuple(strides), self.offset + skip)


def view_of(node: Node) -> View:
    """The view that a node of an AOTAutograd graph is; a node that computes is its own base."""
    source: Any = node.args[0] if node.args else None
    if node.target is operator.getitem:
        rule, source = _PARTS.get(source.target), source.args[0]
    else:
        rule = _RULES.get(node.target)
    derived = rule(view_of(source), node) if rule is not None else None
    if derived is not None:
        return derived
    sizes = tuple(node.meta["val"].shape)
    return View(node, sizes, dense_strides(sizes))


def dense_strides(sizes: Sequence[Any]) -> tuple[Any, ...]:
    """Of a tensor whose numbers follow each other; the sizes may be numbers, SymInts or Dims."""
    strides: list[Any] = []
    step: Any = 1
    for size in reversed(sizes):
        strides.insert(0, step)
        step = step * size
    return tuple(strides)


def same_sizes(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """Whether they are equal by form; comparing them would add guards."""
    return [expression(x) for x in a] == [expression(x) for x in b]


def same_view(a: View, b: View) -> bool:
    """Whether they show the same numbers in the same way."""
    places = [[v.offset, *v.sizes, *v.strides] for v in (a, b)]
    return a.base is b.base and len(a.sizes) == len(b.sizes) and same_sizes(*places)


def transposed(node: Node) -> Node | None:
    """The matrix of which the node is the transpose, all of it, as a linear layer's weight."""
    view = view_of(node)
    shape = view.base.meta["val"].shape
    if len(shape) != 2:
        return None
    rows, columns = shape
    layout = [*view.sizes, *view.strides, view.offset]
    return view.base if same_sizes(layout, [columns, rows, 1, columns, 0]) else None


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by its place or its name, or else its default."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _same(view: View, node: Node) -> View:
    return view


def _permute(view: View, node: Node) -> View:
    dims: Any = node.args[1]
    order = [d % len(view.sizes) for d in dims]
    return view.with_axes([view.sizes[d] for d in order], [view.strides[d] for d in order])


def _transpose(view: View, node: Node) -> View:
    order = list(range(len(view.sizes)))
    if len(order) > 1:
        axes: Any = (0, 1) if node.target is aten.t.default else node.args[1:3]
        a, b = axes
        order[a], order[b] = order[b], order[a]
    return view.with_axes([view.sizes[d] for d in order], [view.strides[d] for d in order])


def _unsqueeze(view: View, node: Node) -> View:
    axis = argument(node, 1, "dim") % (len(view.sizes) + 1)
    sizes, strides = list(view.sizes), list(view.strides)
    sizes.insert(axis, 1)
    strides.insert(axis, 1)
    return view.with_axes(sizes, strides)


def _squeeze(view: View, node: Node) -> View:
    dims: Any = node.args[1]
    axes = {d % len(view.sizes) for d in ([dims] if isinstance(dims, int) else dims)}
    keep = [i for i, n in enumerate(view.sizes) if i not in axes or expression(n) != 1]
    return view.with_axes([view.sizes[i] for i in keep], [view.strides[i] for i in keep])


def _expand(view: View, node: Node) -> View | None:
    sizes = list(node.meta["val"].shape)
    added = len(sizes) - len(view.sizes)
    strides: list[Size] = [0] * added
    for have, stride, want in zip(view.sizes, view.strides, sizes[added:], strict=True):
        if not same_sizes([have], [want]) and expression(have) != 1:
            return None
        strides.append(stride if same_sizes([have], [want]) else 0)
    return view.with_axes(sizes, strides)


def _select(view: View, node: Node) -> View | None:
    axis, index = argument(node, 1, "dim", 0), argument(node, 2, "index", 0)
    axis %= len(view.sizes)
    if not isinstance(index, int):
        return None
    return _without(view, axis, index if index >= 0 else index + view.sizes[axis])


def _without(view: View, axis: int, index: Size) -> View:
    sizes, strides = list(view.sizes), list(view.strides)
    del sizes[axis]
    skip = index * strides.pop(axis)
    return view.with_axes(sizes, strides, skip)


def _slice(view: View, node: Node) -> View | None:
    axis = argument(node, 1, "dim", 0)
    start, step = argument(node, 2, "start") or 0, argument(node, 4, "step", 1)
    if not (isinstance(start, int) and isinstance(step, int)) or start < 0:
        return None
    size = view.sizes[axis]
    if not isinstance(size, int) and start > 0:
        return None  # a start past the end is brought back to it
    strides = list(view.strides)
    skip = min(start, size) * strides[axis] if start else 0
    strides[axis] = strides[axis] * step
    return view.with_axes(node.meta["val"].shape, strides, skip)


def _split(view: View, node: Node) -> View | None:
    split: Any = node.args[0]
    index: Any = node.args[1]
    axis, parts = argument(split, 2, "dim", 0), split.args[1]
    counts = parts[:index] if isinstance(parts, list | tuple) else [parts] * index
    if not all(isinstance(n, int) for n in counts):
        return None
    skip = sum(counts) * view.strides[axis]
    return view.with_axes(node.meta["val"].shape, view.strides, skip)


def _unbind(view: View, node: Node) -> View:
    unbind: Any = node.args[0]
    index: Any = node.args[1]
    return _without(view, argument(unbind, 1, "dim", 0) % len(view.sizes), index)


def _reshape(view: View, node: Node) -> View | None:
    sizes = tuple(node.meta["val"].shape)
    if view.dense():
        return view.with_axes(sizes, dense_strides(sizes))
    strides = _split_axes(view, sizes)
    return None if strides is None else view.with_axes(sizes, strides)


def _split_axes(view: View, sizes: Sequence[Size]) -> list[Size] | None:
    """Strides of a reshape that splits axes; None for one that joins some."""
    strides: list[Size] = []
    rest = list(sizes)
    for size, stride in zip(view.sizes, view.strides, strict=True):
        group: list[Size] = []
        left: Size = size
        while not (group and expression(left) == 1):
            if not rest:
                return None
            part = rest.pop(0)
            group.append(part)
            if expression(part) == expression(left):
                left = 1
            elif isinstance(left, int) and isinstance(part, int) and part and left % part == 0:
                left = left // part
            else:
                return None
        strides += [step * stride for step in dense_strides(group)]
    if any(expression(n) != 1 for n in rest):
        return None
    return strides + [1] * len(rest)


_Rule: TypeAlias = Callable[[View, Node], View | None]

_RULES: dict[Any, _Rule] = {
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.permute.default: _permute,
    aten.t.default: _transpose,
    aten.transpose.int: _transpose,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.expand.default: _expand,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
}
_PARTS: dict[Any, _Rule] = {
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unbind.int: _unbind,
}

VIEWS = frozenset({*_RULES, *_PARTS, operator.getitem})
"""What stands between a value and the views of it that ``view_of`` follows."""
