"""Assertions of dtypes and devices, which torch.export writes beside each ``.to``, are dropped.

A compiled graph's dtypes and devices are those it was traced with. As users of what they look at,
assertions would hide from the passes that a result is used once.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule

_ASSERTION = torch.ops.aten._assert_tensor_metadata.default


def drop_tensor_assertions(gm: GraphModule) -> None:
    """Removes every ``_assert_tensor_metadata``."""
    found = gm.graph.find_nodes(op="call_function", target=_ASSERTION)
    for node in found:
        gm.graph.erase_node(node)
    if found:
        gm.recompile()
