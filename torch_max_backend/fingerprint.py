"""The fingerprint of an AOTAutograd graph: a hash of all in it that its executable depends on.

All nodes with all arguments and constants, dtypes, shapes and their symbols, devices, strides of
the results, and the options that matter; environment.py adds the rest. Left out on purpose: node
names, stack traces, and the names of size symbols (renamed in order of appearance), which change
nothing in the executable.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from torch_max_backend import registry
from torch_max_backend.context import real_tensors
from torch_max_backend.digests import digest_of, tensor_digest
from torch_max_backend.options import MaxOptions


def graph_fingerprint(gm: GraphModule, options: MaxOptions) -> str:
    """Hex SHA-256 of one AOTAutograd graph and the options; equal keys = equal executables."""
    return digest_of(_GraphWriter(gm).lines(), repr(sorted(options.cache_key().items())))


class _GraphWriter:
    """Writes a graph as lines of text, one node each, with nodes and symbols numbered."""

    def __init__(self, gm: GraphModule) -> None:
        self.gm = gm
        self.numbers = {node: i for i, node in enumerate(gm.graph.nodes)}
        self.symbols: dict[sympy.Symbol, sympy.Symbol] = {}

    def lines(self) -> list[str]:
        return [self._node(node) for node in self.gm.graph.nodes]

    def _node(self, node: Node) -> str:
        target = "" if node.op in ("placeholder", "output") else _target(node.target)
        parts = [node.op, target, self._write(node.args), self._write(node.kwargs)]
        if node.op == "get_attr":
            parts = [node.op, self._constant(getattr(self.gm, str(node.target)))]
        elif node.op == "call_function":
            parts.append(_lowering_source(node.target))
        return " ".join([*parts, self._write(node.meta.get("val"))])

    def _constant(self, tensor: torch.Tensor) -> str:
        with real_tensors():
            return f"{self._tensor(tensor)} {tensor_digest(tensor)}"

    def _tensor(self, value: torch.Tensor) -> str:
        return (
            f"tensor({value.dtype} {self._write(tuple(value.shape))} "
            f"{self._write(tuple(value.stride()))} {value.device})"
        )

    def _write(self, value: Any) -> str:
        if isinstance(value, Node):
            return f"%{self.numbers[value]}"
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return self._expression(value)
        if isinstance(value, Mapping):
            return "{" + ",".join(f"{k}:{self._write(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + ",".join(map(self._write, value)) + "]"
        if isinstance(value, slice):
            return f"slice{self._write((value.start, value.stop, value.step))}"
        if isinstance(value, float):
            return f"float {value.hex()}"
        return f"{type(value).__name__} {value!r}"

    def _expression(self, value: Any) -> str:
        expr = value.node.expr
        for symbol in sorted(expr.free_symbols, key=lambda s: s.name):
            self.symbols.setdefault(symbol, sympy.Symbol(f"n{len(self.symbols)}"))
        text = sympy.srepr(expr.xreplace(self.symbols))
        if isinstance(value, torch.SymInt) and isinstance(expr, sympy.Symbol):
            lower = value.node.shape_env.bound_sympy(expr).lower
            text += " natural" if lower >= 0 else " integer"
        return f"{type(value).__name__} {text}"


def _target(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"


def _lowering_source(target: Any) -> str:
    """Empty for the table's own rows, which the package's digest covers; else the user's file."""
    row = registry.find(target)
    if row is None or row.function.__module__.startswith("torch_max_backend."):
        return ""
    return _file_digest(inspect.unwrap(row.function))


def _file_digest(function: Callable[..., Any]) -> str:
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    if file is None:  # typed into a shell: nothing to compare with, so never found again
        return uuid.uuid4().hex
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
