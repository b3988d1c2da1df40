"""Readable accounts of a graph: what TORCH_MAX_BACKEND_VERBOSE logs."""

from __future__ import annotations

from collections import Counter

import torch
from tabulate import tabulate
from torch.fx import GraphModule, Node


def describe_graph(gm: GraphModule) -> str:
    """The FX graph as a table, then how often each operator occurs."""
    rows = [
        [node.op, node.name, _target(node), str(list(node.args)), _value(node)]
        for node in gm.graph.nodes
    ]
    counts = Counter(_target(node) for node in gm.graph.nodes if node.op == "call_function")
    graph = tabulate(rows, headers=["op", "name", "target", "args", "value"], maxcolwidths=60)
    return f"{graph}\n\n{tabulate(counts.most_common(), headers=['operator', 'count'])}"


def _target(node: Node) -> str:
    return str(node.target)


def _value(node: Node) -> str:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return "" if value is None else str(value)
