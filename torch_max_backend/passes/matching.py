"""What passes that look for several nodes ask of one."""

from __future__ import annotations

from typing import Any

from torch.fx import Node


def arguments(node: Any, target: Any) -> Any:
    """The positional arguments of a call of ``target`` that has no others but a dtype, which its
    result has too; None for anything else."""
    if not isinstance(node, Node) or node.target is not target or node.kwargs.keys() - {"dtype"}:
        return None
    return node.args
