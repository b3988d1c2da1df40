"""Graphs as bytes, for another process. PyTorch has no public way to write symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable

from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node


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
