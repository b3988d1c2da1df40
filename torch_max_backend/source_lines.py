"""Where in the user's program a node of a graph comes from."""

from __future__ import annotations

from torch.fx import Node


def source_of(node: Node) -> str:
    """The user's line a node comes from, as ``file:line, in function: code``."""
    for candidate in _ancestry(node):
        trace = candidate.meta.get("stack_trace")
        if trace:
            lines = [line.strip() for line in trace.strip().splitlines()]
            frames = [i for i, line in enumerate(lines) if line.startswith("File ")]
            if frames:
                where = lines[frames[-1]].removeprefix("File ").replace('"', "")
                code = lines[frames[-1] + 1] if frames[-1] + 1 < len(lines) else ""
                file, _, rest = where.partition(", line ")
                number, _, function = rest.partition(", ")
                return f"{file}:{number}, {function}: {code}" if rest else where
    for candidate in _ancestry(node):
        for key in ("nn_module_stack", "fwd_nn_module_stack"):
            stack = candidate.meta.get(key)
            if stack:
                path, kind = list(stack.values())[-1]
                return f"module {path or 'root'} ({getattr(kind, '__name__', kind)})"
    return f"node {node.name} (no source line was recorded)"


def _ancestry(node: Node) -> list[Node]:
    """The node, then its nearest ancestors: a decomposition may leave a node without a trace."""
    seen, queue = [node], list(node.all_input_nodes)
    while queue and len(seen) < 8:
        parent = queue.pop(0)
        if parent.op == "call_function" and parent not in seen:
            seen.append(parent)
            queue.extend(parent.all_input_nodes)
    return seen
