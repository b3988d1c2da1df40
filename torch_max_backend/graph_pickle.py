"""Graphs as bytes, for another process. PyTorch has no public way to write symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node

_VALUE = "example_value"
"""Where Dynamo's nodes have their fake value."""
_ARGUMENT = "grapharg"
"""Where its arguments have the tensor that it traced with."""


def save_graph(gm: GraphModule, keep: Callable[[Node, str], bool]) -> bytes:
    """The graph with those entries of its nodes' ``meta`` that ``keep`` names; not all can be
    written."""
    from torch.fx._graph_pickler import GraphPickler, Options

    graphs = [module.graph for module in gm.modules() if isinstance(module, GraphModule)]
    nodes = [node for graph in graphs for node in graph.nodes]
    entries = [node.meta for node in nodes]
    try:
        for node in nodes:
            node.meta = {key: value for key, value in node.meta.items() if keep(node, key)}
        return GraphPickler.dumps(gm, Options(ops_filter=None))
    finally:
        for node, meta in zip(nodes, entries, strict=True):
            node.meta = meta


def load_graph(data: bytes, fake_mode: FakeTensorMode) -> GraphModule:
    """What ``save_graph`` wrote, its fake values in that mode. A pickle: load what you trust."""
    from torch.fx._graph_pickler import GraphPickler

    gm = GraphPickler.loads(data, fake_mode)
    assert isinstance(gm, GraphModule)
    return gm


def save_dynamo_graph(gm: GraphModule) -> bytes:
    """Dynamo's graph. Of the fake values only the arguments' are kept: some of the others cannot be
    written, and tracing makes them anew."""
    arguments = set(gm.graph.find_nodes(op="placeholder"))
    return save_graph(
        gm, lambda node, key: key != _ARGUMENT and (key != _VALUE or node in arguments)
    )


def load_dynamo_graph(data: bytes, fake_mode: FakeTensorMode) -> GraphModule:
    """What ``save_dynamo_graph`` wrote; see ``load_graph``."""
    gm = load_graph(data, fake_mode)
    for node in gm.graph.find_nodes(op="placeholder"):
        node._dynamo_source = None  # AOTAutograd asks each for it and takes None
    gm.recompile()
    return gm


def fake_inputs(gm: GraphModule) -> list[Any]:
    """The fake values of a Dynamo graph's arguments."""
    return [node.meta[_VALUE] for node in gm.graph.find_nodes(op="placeholder")]
