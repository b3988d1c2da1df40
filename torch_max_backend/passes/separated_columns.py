"""A product whose columns are read in parts, of one part only some rows, as several products.

One layer makes the queries, keys and values of most models; queries are the first third of its
columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.passes.matching import call, layer_operands
from torch_max_backend.passes.row_rules import Rows
from torch_max_backend.views import VIEWS, View, dense_strides, same_sizes, transposed, view_of

aten = torch.ops.aten


@dataclass(frozen=True)
class _Part:
    """A view of all rows of a product, and of ``width`` columns from ``start`` on; its axes of rows
    and those of columns, in the order in which they lie there."""

    start: int
    width: int
    rows: list[int]
    columns: list[int]

    @property
    def stop(self) -> int:
        return self.start + self.width


def separate_columns(gm: GraphModule, wanted: dict[Node, Rows | None]) -> bool:
    """Gives columns of which ``wanted`` says that only some rows are read a product of their own;
    whether there are such."""
    separated = False
    for product in list(gm.graph.nodes):
        parts = _parts(product)
        narrow = [part for view, part in parts.items() if wanted[view] is not None]
        whole = [part for view, part in parts.items() if wanted[view] is None]
        if not narrow or not whole:
            continue
        start, stop = min(part.start for part in whole), max(part.stop for part in whole)
        if any(part.start < stop and start < part.stop for part in narrow):
            continue
        rest = _columns(gm, product, start, stop)
        for view, part in parts.items():
            if wanted[view] is None:
                _move(gm, view, part, rest, part.start - start)
            else:
                _move(gm, view, part, _columns(gm, product, part.start, part.stop), 0)
        separated = True
    return separated


def _parts(product: Node) -> dict[Node, _Part]:
    """The views that read a product, if nothing else does."""
    if layer_operands(product) is None:
        return {}
    found: dict[Node, _Part] = {}
    for view in _last_views(product):
        part = _part(view_of(view), product) if view is not None else None
        if view is None or part is None:
            return {}
        found[view] = part
    return found


def _last_views(node: Node) -> Iterator[Node | None]:
    """The last ones of views of views of a node; None where another operator reads one before."""
    for user in node.users:
        followed = {follower.target in VIEWS for follower in user.users}
        if user.target not in VIEWS or len(followed) != 1:
            yield None
        elif True in followed:
            yield from _last_views(user)
        else:
            yield user


def _part(view: View, product: Node) -> _Part | None:
    """None for a view of only some rows or of columns that do not lie side by side."""
    rows, columns = product.meta["val"].shape
    known = all(isinstance(n, int) for n in (columns, view.offset, *view.strides))
    unknown = [size for size in view.sizes if not isinstance(size, int)]
    if view.base is not product or not known or len(unknown) > 1:
        return None
    axes = range(len(view.sizes))
    ones = [axis for axis in axes if same_sizes([view.sizes[axis]], [1])]
    order = sorted(set(axes) - set(ones), key=lambda axis: -view.strides[axis])
    across = [axis for axis in order if view.strides[axis] < columns]
    down = order[: len(order) - len(across)]
    width = prod(view.sizes[axis] for axis in across)
    sizes = [*(view.sizes[axis] for axis in down), columns]
    steps = [*dense_strides(sizes)[:-1], *dense_strides([view.sizes[axis] for axis in across])]
    if not same_sizes([view.strides[axis] for axis in order], steps):
        return None
    if not same_sizes([prod(sizes)], [rows * columns]) or view.offset + width > columns:
        return None
    return _Part(view.offset, width, down, across + ones)  # type: ignore[arg-type]


def _columns(gm: GraphModule, product: Node, start: int, stop: int) -> Node:
    """The product with those columns of its right operand, and numbers of its bias."""
    *bias, left, right = product.args
    weight = transposed(right)  # type: ignore[arg-type]
    with gm.graph.inserting_before(product):
        biases = [_copy(gm, b, 0, start, stop) for b in bias]
        if weight is not None:
            operand = call(gm, aten.permute.default, _copy(gm, weight, 0, start, stop), [1, 0])
        else:
            operand = _copy(gm, right, 1, start, stop)
        node = call(gm, product.target, *biases, left, operand)
    node.meta = {**product.meta, **node.meta}
    return node


def _copy(gm: GraphModule, x: Any, axis: int, start: int, stop: int) -> Node:
    """A copy of a part, which a kernel takes as it lies."""
    part = call(gm, aten.slice.Tensor, x, axis, start, stop)
    return call(gm, aten.clone.default, part)


def _move(gm: GraphModule, view: Node, part: _Part, product: Node, start: int) -> None:
    """Makes a view one of columns of another product, from ``start`` on."""
    sizes = [size if isinstance(size, int) else -1 for size in view.meta["val"].shape]
    rows = [sizes[axis] for axis in part.rows]
    columns = product.meta["val"].shape[1]
    with gm.graph.inserting_before(view):
        laid = call(gm, aten.view.default, product, [*rows, columns])
        if columns != part.width:
            laid = call(gm, aten.slice.Tensor, laid, len(rows), start, start + part.width)
        axes = [*rows, *(sizes[axis] for axis in part.columns)]
        laid = call(gm, aten.view.default, laid, axes)
        order = [*part.rows, *part.columns]
        places = [order.index(axis) for axis in range(len(sizes))]
        new = call(gm, aten.permute.default, laid, places)
    new.meta = {**view.meta, **new.meta}
    view.replace_all_uses_with(new)
