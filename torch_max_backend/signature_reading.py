"""The signature of an AOTAutograd graph, from that alone: a graph found in the cache needs no
building."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from max.dtype import DType
from max.graph import DeviceRef, Dim, TensorType
from torch.fx import GraphModule, Node
from torch.utils._sympy import functions as symbolic
from torch.utils._sympy.value_ranges import ValueRanges

from torch_max_backend.accelerators import to_device_ref
from torch_max_backend.dims import expression, to_dim
from torch_max_backend.dtypes import to_max
from torch_max_backend.errors import InputError, MaxBackendError
from torch_max_backend.ops.random import RANDOM_OPERATORS, seed_type
from torch_max_backend.signature import (
    ArgumentOutput,
    Check,
    GraphInput,
    GraphSignature,
    NumberOutput,
    RepeatedOutput,
    TensorOutput,
)
from torch_max_backend.source_lines import source_of

_SYMBOLIC = torch.SymInt | torch.SymFloat | torch.SymBool


def read_signature(gm: GraphModule) -> GraphSignature:
    """The signature of an AOTAutograd graph.

    Raises:
        MaxBackendError: an argument or a result is neither a tensor, a number nor None.
    """
    signature = GraphSignature()
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    bound_by_tensor = _add_tensors(signature, placeholders)
    _add_numbers(signature, placeholders, bound_by_tensor)
    if any(node.target in RANDOM_OPERATORS for node in gm.graph.nodes):
        signature.inputs.append(GraphInput(-1, "seed", seed_type()))
    _add_outputs(signature, gm, placeholders)
    _add_checks(signature, gm)
    _add_computed(signature, gm)
    return signature


def _add_tensors(signature: GraphSignature, placeholders: Sequence[Node]) -> set[str]:
    """Adds the tensors that are used; returns the symbols that their shapes bind."""
    bound: set[str] = set()
    for position, node in enumerate(placeholders):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        for axis, size in enumerate(value.shape):
            expr = expression(size)
            if isinstance(expr, sympy.Symbol):
                signature.symbols.setdefault(expr.name, (position, axis))
        if not any(user.op != "output" for user in node.users):
            continue
        shape: list[Dim] = []
        for axis, size in enumerate(value.shape):
            expr = expression(size)
            plain = isinstance(expr, sympy.Symbol | sympy.Integer)
            if isinstance(expr, sympy.Symbol):
                bound.add(expr.name)
            shape.append(to_dim(size) if plain else Dim(f"input{position}_axis{axis}"))
        try:
            kind = TensorType(to_max(value.dtype), shape, to_device_ref(value.device))
        except InputError as error:
            user = next(user for user in node.users if user.op != "output")
            where = f"argument {position}, {list(value.shape)}, first used at {source_of(user)}"
            raise InputError(f"{error}\n  {where}") from error
        signature.inputs.append(GraphInput(position, "tensor", kind, node=node))
    return bound


def _add_numbers(
    signature: GraphSignature, placeholders: Sequence[Node], bound_by_tensor: set[str]
) -> None:
    for position, node in enumerate(placeholders):
        value = node.meta.get("val")
        if not isinstance(value, torch.SymInt | torch.SymFloat):
            continue
        expr = value.node.expr
        if not isinstance(expr, sympy.Symbol):
            continue
        signature.symbols.setdefault(expr.name, (position, None))
        if expr.name in bound_by_tensor:
            continue
        if isinstance(value, torch.SymInt) and never_negative(value):
            kind = TensorType(DType.bool, (expr.name, 0), DeviceRef.CPU())
            signature.inputs.append(GraphInput(position, "size", kind))
        else:
            dtype = DType.int64 if isinstance(value, torch.SymInt) else DType.float64
            kind = TensorType(dtype, (), DeviceRef.CPU())
            signature.inputs.append(GraphInput(position, "number", kind, symbol=expr.name))


def never_negative(value: torch.SymInt) -> bool:
    """Whether torch knows that it can be a size."""
    node = value.node
    bounds: ValueRanges = node.shape_env.bound_sympy(node.expr)
    return bool(bounds.lower >= 0)


def _add_outputs(signature: GraphSignature, gm: GraphModule, placeholders: Sequence[Node]) -> None:
    (results,) = gm.graph.find_nodes(op="output")[0].args
    places: dict[Node, int] = {}
    for place, result in enumerate(results):
        if isinstance(result, Node) and places.setdefault(result, place) != place:
            signature.outputs.append(RepeatedOutput(places[result]))
        elif result is None or not isinstance(result, Node):
            signature.outputs.append(None if result is None else NumberOutput(result))
        elif result.op == "placeholder":
            signature.outputs.append(ArgumentOutput(placeholders.index(result)))
        elif isinstance(result.meta.get("val"), torch.Tensor):
            signature.outputs.append(_tensor_output(result))
        elif isinstance(result.meta.get("val"), _SYMBOLIC):
            signature.outputs.append(NumberOutput(result.meta["val"].node.expr))
        elif isinstance(result.meta.get("val"), int | float | bool):
            signature.outputs.append(NumberOutput(result.meta["val"]))
        else:
            raise MaxBackendError(
                f"a graph returns tensors, numbers and None; {result.name} is "
                f"{type(result.meta.get('val')).__name__}"
            )


def _add_checks(signature: GraphSignature, gm: GraphModule) -> None:
    """Conditions on arguments are guards of torch.compile already."""
    for node in gm.graph.find_nodes(
        op="call_function", target=torch.ops.aten._assert_scalar.default
    ):
        asserted, message = node.args
        value = asserted.meta["val"] if isinstance(asserted, Node) else asserted
        if isinstance(value, torch.SymBool | torch.SymInt):
            condition = value.node.expr
            if not _names(condition) <= signature.symbols.keys():
                signature.checks.append(Check(condition, str(message)))


def _add_computed(signature: GraphSignature, gm: GraphModule) -> None:
    known = dict.fromkeys(
        name for node in gm.graph.nodes for name in _symbols_of(node.meta.get("val"))
    )
    needed: set[str] = set()
    for output in signature.outputs:
        if isinstance(output, NumberOutput):
            needed |= _names(output.value)
        elif isinstance(output, TensorOutput):
            assert output.node is not None
            if not _names(output.offset) <= known.keys():
                raise MaxBackendError(
                    f"the result {output.node.name} is a view that starts at a place which only a "
                    f"run can tell; return a copy of it (.clone())\n"
                    f"  source: {source_of(output.node)}"
                )
            if output.order is None:
                needed |= _names(*output.shape, *output.stride, output.offset)
            else:
                needed |= _names(*(output.shape[axis] for axis in output.expanded))
    for check in signature.checks:
        needed |= _names(check.condition)
    needed -= signature.symbols.keys()
    # in order of appearance: the names may differ between graphs that share an executable
    signature.computed = [name for name in known if name in needed]


def _symbols_of(value: Any) -> list[str]:
    """The symbols of a node's value that the graph knows: all but those of a tensor's layout."""
    if isinstance(value, torch.Tensor):
        expressions = list(map(expression, value.shape))
    else:
        expressions = [value.node.expr] if isinstance(value, _SYMBOLIC) else []
    return [name for expr in expressions for name in sorted(_names(expr))]


def _names(*expressions: Any) -> set[str]:
    return {
        symbol.name
        for expr in expressions
        if isinstance(expr, sympy.Basic)
        for symbol in expr.free_symbols
    }


def _tensor_output(node: Node) -> TensorOutput:
    value = node.meta["val"]
    shape = tuple(expression(size) for size in value.shape)
    stride = tuple(expression(step) for step in value.stride())
    expanded = tuple(i for i, step in enumerate(stride) if step == 0 and shape[i] not in (0, 1))
    offset = expression(value.storage_offset())
    order = _memory_order(value, shape, stride, expanded) if offset == 0 else None
    return TensorOutput(node, shape, stride, offset, order, expanded)


def _memory_order(
    value: torch.Tensor,
    shape: Sequence[sympy.Expr],
    stride: Sequence[sympy.Expr],
    expanded: Sequence[int],
) -> tuple[int, ...] | None:
    """Axes from outermost to innermost when the tensor is dense in that order, else None."""
    if any(size == 0 for size in shape):
        return tuple(range(len(shape)))
    identity = tuple(range(len(shape)))
    stride = [_positive(step) for step in stride]
    hints = [_hint(step) for step in value.stride()]
    sizes = [_hint(size) for size in value.shape]
    by_stride = tuple(sorted(identity, key=lambda i: (-hints[i], -sizes[i], i)))
    for order in (identity, by_stride):
        step = sympy.Integer(1)
        dense = True
        for axis in reversed(order):
            if axis in expanded or shape[axis] == 1:
                continue
            dense = dense and sympy.expand(stride[axis] - step) == 0
            step = step * shape[axis]
        if dense:
            return order
    return None


def _positive(step: sympy.Expr) -> sympy.Expr:
    """A stride without the Max(1, size) that PyTorch writes for a size that might be 0."""
    return step.replace(
        lambda e: isinstance(e, sympy.Max | symbolic.Max) and sympy.Integer(1) in e.args,
        lambda e: next(arg for arg in e.args if arg != 1),
    )


def _hint(size: int | torch.SymInt) -> int:
    """The size in the traced example: only a guess of the memory order, verified symbolically."""
    if isinstance(size, torch.SymInt):
        return size.node.hint if size.node.has_hint() else 1 << 40
    return size
