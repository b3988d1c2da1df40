"""The key of one of Dynamo's graphs: a hash of all that AOTAutograd's trace of it depends on.

The graph with the graphs nested in it, what its inputs are, torch's settings, the options and the
environment. There is a key where all of that can be told: sizes are numbers, inputs plain tensors,
functions torch's own, and nothing else takes part in the trace (a mode, a functorch transform, a
lowering of the user's). Node names and source lines are left out.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import GraphModule, Node

from torch_max_backend.digests import digest_of, tensor_digest
from torch_max_backend.environment import environment
from torch_max_backend.options import MaxOptions

_TRUSTED = {"torch", "_operator", "math", "builtins"}
"""Whose functions do what they did when another process of this environment met them."""
_PLAIN = {
    *(bool, int, str, complex, type(None), EllipsisType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
}
_TENSORS = (torch.Tensor, torch.nn.Parameter)


class _UntoldError(Exception):
    """Part of the graph has no text that stands for it."""


def dynamo_key(gm: GraphModule, example_inputs: Sequence[Any], options: MaxOptions) -> str | None:
    """Hex SHA-256; equal keys = AOTAutograd and the passes make equal graphs. None: no telling."""
    if _is_intercepted() or _has_user_lowerings():
        return None
    try:
        told = _inputs(gm.graph.find_nodes(op="placeholder"), example_inputs)
        writer = _Writer()
        writer.number_of(gm)
    except _UntoldError:
        return None
    settings = [_torch_settings(), repr(sorted(options.cache_key().items()))]
    return digest_of(told, writer.lines, settings, environment())


def _is_intercepted() -> bool:
    """Whether a mode or a transform stands between the trace and torch's operators.

    PyTorch has no public name for either.
    """
    return (
        torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _has_user_lowerings() -> bool:
    """Without importing the table: nobody has added to it before that."""
    registry = sys.modules.get("torch_max_backend.registry")
    return registry is not None and registry.has_user_lowerings()


def _torch_settings() -> str:
    kinds = ("cpu", "cuda", "mps")
    return repr(
        [
            (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds],
            (torch.get_default_dtype(), torch.get_float32_matmul_precision()),
            (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.enabled),
            (torch.backends.opt_einsum.enabled, torch.backends.opt_einsum.strategy),
            torch.cuda.current_device() if torch.cuda.is_initialized() else None,
            torch._functorch.config.get_hash(),  # AOTAutograd's own
        ]
    )


def _inputs(placeholders: Sequence[Node], given: Sequence[Any]) -> list[str]:
    if len(placeholders) != len(given) or len(set(map(id, given))) != len(given):
        raise _UntoldError  # AOTAutograd may drop a repeated one
    return [_input(node, value) for node, value in zip(placeholders, given, strict=True)]


def _input(node: Node, given: Any) -> str:
    fake = node.meta.get("example_value")  # its sizes may be symbols where those given are numbers
    if not isinstance(fake, torch.Tensor):
        raise _UntoldError
    layout = (*fake.shape, *fake.stride())
    if any(type(size) is not int for size in layout):
        raise _UntoldError
    static = node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    return f"{_tensor(given)} {layout} {given.is_inference()} {static}"


def _tensor(value: Any) -> str:
    if type(value) not in _TENSORS or value.layout is not torch.strided or value.is_nested:
        raise _UntoldError
    if value.is_quantized or value.is_conj() or value.is_neg():
        raise _UntoldError
    return f"{type(value).__name__} {value.dtype} {value.device} {value.requires_grad}"


class _Writer:
    """Writes graphs as lines of text, one node each, with graphs and nodes numbered."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._graphs: dict[GraphModule, int] = {}
        self._nodes: dict[Node, int] = {}

    def number_of(self, gm: GraphModule) -> int:
        """A graph's number; its lines, and those of the graphs in it, are written once."""
        if gm not in self._graphs:
            if gm.meta.get("nested_region_config") is not None:
                raise _UntoldError
            lines = []
            for number, node in enumerate(gm.graph.nodes):
                lines.append(self._node(gm, node))
                self._nodes[node] = number
            self._graphs[gm] = len(self._graphs)
            self.lines += [f"graph {self._graphs[gm]}", *lines]
        return self._graphs[gm]

    def _node(self, gm: GraphModule, node: Node) -> str:
        if node.op == "get_attr":
            return f"get_attr {self._attribute(operator.attrgetter(str(node.target))(gm))}"
        target = str(node.target) if node.op == "call_method" else ""
        if node.op == "call_function":
            target = _function(node.target)
        elif node.op == "call_module":
            raise _UntoldError
        return f"{node.op} {target} {self._write(node.args)} {self._write(node.kwargs)}"

    def _attribute(self, value: Any) -> str:
        if isinstance(value, GraphModule):
            return f"graph {self.number_of(value)}"
        return f"{_tensor(value)} {(*value.shape, *value.stride())} {tensor_digest(value)}"

    def _write(self, value: Any) -> str:
        if isinstance(value, Node):
            return f"%{self._nodes[value]}"
        if isinstance(value, Mapping):
            return "{" + ",".join(f"{k!r}:{self._write(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}[{','.join(map(self._write, value))}]"
        if type(value) is slice:
            return f"slice{self._write((value.start, value.stop, value.step))}"
        if type(value) is float:
            return f"float {value.hex()}"
        if type(value) not in _PLAIN:
            raise _UntoldError
        return f"{type(value).__name__} {value!r}"


def _function(target: Any) -> str:
    """The name of a function of torch or Python; a function that only goes by such a name, a
    user's wrapper of it, has its globals elsewhere."""
    if isinstance(target, OpOverload) and target.namespace in ("aten", "prims"):
        return str(target)
    if isinstance(target, HigherOrderOperator) and target.name() == "invoke_subgraph":
        return target.name()
    module, name = str(getattr(target, "__module__", "")), str(getattr(target, "__name__", ""))
    home = getattr(target, "__globals__", {}).get("__name__", module)
    is_trusted = {module.partition(".")[0], home.partition(".")[0]} <= _TRUSTED
    if is_trusted and getattr(sys.modules.get(module), name, None) is target:
        return f"{module}.{name}"
    raise _UntoldError
