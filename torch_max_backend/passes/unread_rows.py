"""Rows that nothing reads are not computed.

A model that goes on with some tokens of a sequence, its class token say, needs no others of what
treats every token by itself: in the last block of a ViT keys and values are of all tokens, queries,
the MLP and all else of the class token. That is 7 % of the products of twelve blocks.
"""

from __future__ import annotations

import operator
from itertools import starmap

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from torch_max_backend.passes.matching import call
from torch_max_backend.passes.row_rules import PRODUCTS, Call, Rows, Take, read_rows, rule_of
from torch_max_backend.passes.separated_columns import separate_columns

aten = torch.ops.aten

_LARGEST_SHARE = 0.5
"""Of the rows, beyond which all are computed: a block's kernels know no others."""


def drop_unread_rows(gm: GraphModule) -> None:
    """Replaces products of which few rows are read, and what follows them up to where these are."""
    wanted = _wanted(gm)
    if not any(node.target in PRODUCTS and _operands(node, wanted[node])[0] for node in wanted):
        return
    if separate_columns(gm, wanted):
        wanted = _wanted(gm)
    _Narrowing(gm, wanted).run()
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _wanted(gm: GraphModule) -> dict[Node, Rows | None]:
    """Of each node the rows that are read, None for all."""
    found: dict[Node, Rows | None] = {}
    for node in reversed(gm.graph.nodes):
        rows = found[node] = _worthwhile(found.get(node))
        taken, whole = _operands(node, rows)
        for source, wanted in taken:
            found[source] = _joined(found[source], wanted) if source in found else wanted
        for source in whole:
            found[source] = None
    return found


def _call(node: Node, rows: Rows | None, take: Take) -> Call | None:
    """What computes the wanted rows of a node from some rows of others."""
    if rows is None:
        return read_rows(node, take)
    rule = rule_of(node)
    return rule(node, rows, take) if rule is not None else None


def _operands(node: Node, rows: Rows | None) -> tuple[list[tuple[Node, Rows]], list[Node]]:
    """What those of a node are computed from: rows of others, and others as a whole."""
    taken: list[tuple[Node, Rows]] = []
    found = _call(node, rows, lambda *operand: taken.append(operand))
    if found is None or not all(starmap(_can_slice, taken)):
        return [], node.all_input_nodes
    whole: list[Node] = []
    map_arg(found[1], whole.append)
    return taken, whole


def _can_slice(node: Node, rows: Rows) -> bool:
    """Whether the sizes are known by which joined sequences would be taken apart."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return True
    return not rows.is_joined(value.shape) or all(type(n) is int for n in value.shape[1:])


def _worthwhile(rows: Rows | None) -> Rows | None:
    return rows if rows is not None and rows.count <= rows.length * _LARGEST_SHARE else None


def _joined(a: Rows | None, b: Rows) -> Rows | None:
    """Rows that contain both."""
    if a is None or (a.axis, a.length) != (b.axis, b.length):
        return None
    return Rows(a.axis, a.length, min(a.start, b.start), max(a.stop, b.stop))


class _Narrowing:
    """Computes the wanted rows in the place of all."""

    def __init__(self, gm: GraphModule, wanted: dict[Node, Rows | None]) -> None:
        self.gm = gm
        self.wanted = wanted
        self.narrow: dict[Node, tuple[Node, Rows]] = {}
        self.slices: dict[tuple[Node, Rows], Node] = {}

    def run(self) -> None:
        for node in list(self.gm.graph.nodes):
            rows = self._rows_of(node)
            taken, _ = _operands(node, rows)
            is_product = node.target in PRODUCTS and bool(taken)
            if not is_product and not any(source in self.narrow for source, _ in taken):
                continue
            with self.gm.graph.inserting_before(node):
                target, args = _call(node, rows, self._take)  # type: ignore[misc]
                new = call(self.gm, target, *args, **node.kwargs)
            if rows is None:
                new.meta = dict(node.meta)  # laid out as before, should it be a result
                node.replace_all_uses_with(new)
            else:
                new.meta = {**node.meta, **new.meta}
                self.narrow[node] = new, rows

    def _rows_of(self, node: Node) -> Rows | None:
        """Of one of several results those that the others have too."""
        source = node.args[0] if node.args else None
        if node.target is operator.getitem and source in self.narrow:
            return self.narrow[source][1]  # type: ignore[index]
        return self.wanted[node]

    def _take(self, node: Node, rows: Rows) -> Node:
        source, have = self.narrow.get(node, (node, None))
        if have is not None:
            rows = Rows(rows.axis, have.count, rows.start - have.start, rows.stop - have.start)
        if rows.count == rows.length:
            return source
        if (source, rows) not in self.slices:
            self.slices[source, rows] = self._slice(source, rows)
        return self.slices[source, rows]

    def _slice(self, source: Node, rows: Rows) -> Node:
        """Copied, so that it may be reshaped: MAX copies a slice anyhow."""
        shape = source.meta["val"].shape
        if not rows.is_joined(shape):
            part = call(self.gm, aten.slice.Tensor, source, rows.axis, rows.start, rows.stop)
            return call(self.gm, aten.clone.default, part)
        rest = list(shape[1:])
        apart = call(self.gm, aten.view.default, source, [-1, rows.length, *rest])
        part = self._slice(apart, rows.along(1))
        return call(self.gm, aten.view.default, part, [-1, *rest])
