"""What surrounds a lowering: the node it lowers, and the modes of the compiler around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from max.graph import Dim, TensorValue
from torch.fx import Node

from torch_max_backend.dims import IntLike, to_dim, to_int_or_dim
from torch_max_backend.options import MaxOptions
from torch_max_backend.views import View, same_sizes, view_of

aten = torch.ops.aten

_node: ContextVar[Node] = ContextVar("node being lowered")
_values: ContextVar[Mapping[Node, Any]] = ContextVar("MAX values of the nodes lowered so far")
_options: ContextVar[MaxOptions] = ContextVar("options of the graph")


@contextmanager
def lowering_of(node: Node, values: Mapping[Node, Any]) -> Iterator[None]:
    """Makes ``node`` the one that the functions below speak of."""
    tokens = _node.set(node), _values.set(values)
    try:
        yield
    finally:
        _node.reset(tokens[0])
        _values.reset(tokens[1])


@contextmanager
def building_with(settings: MaxOptions) -> Iterator[None]:
    """Makes ``settings`` the options of the graph being built."""
    token = _options.set(settings)
    try:
        yield
    finally:
        _options.reset(token)


def options() -> MaxOptions:
    """The options of the graph being built."""
    return _options.get(MaxOptions())


@contextmanager
def mlir_context() -> Iterator[None]:
    """Lets a thread build and compile graphs: MLIR's context is thread-local.

    MAX enters it for the main thread only and has no public name for doing so in another.
    """
    from max._mlir_context import ensure_default_mlir_context

    with ensure_default_mlir_context():
        yield


@contextmanager
def real_tensors() -> Iterator[None]:
    """Lets a block compute on real tensors while AOTAutograd's fake tensor mode is active.

    PyTorch has no public name for this; Inductor reads its constants the same way.
    """
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        yield


def expected(index: int | None = None) -> torch.Tensor:
    """torch's fake result of the node, or of one element of its results."""
    value: Any = _node.get().meta["val"]
    return value if index is None else value[index]


def expected_shape(index: int | None = None) -> list[Dim]:
    """The shape of the result in canonical Dims."""
    return [to_dim(size) for size in expected(index).shape]


def patch_grid() -> list[Dim]:
    """How many patches lie along each axis, left on the node by passes/patch_embedding.py."""
    return [to_dim(size) for size in _node.get().meta["grid"]]


@dataclass(frozen=True)
class Strided:
    """An operand as it lies: number ``offset + sum(index * stride)`` of the dense ``base``."""

    base: TensorValue
    strides: tuple[IntLike, ...]
    offset: IntLike


@dataclass(frozen=True)
class Rotation:
    """Rotary position embedding of an operand's rows from ``first`` on."""

    sin: TensorValue
    cos: TensorValue
    first: int


def strided_operand(index: int) -> Strided | None:
    """How an argument of the node lies in the value it is a view of; None where it is no view."""
    argument = _argument(index)
    view = view_of(argument) if argument is not None else None
    return None if view is None or view.base is argument else _strided(view)


def rotated_operand(index: int) -> tuple[Strided, Rotation] | None:
    """How an argument of the node lies before its rotation, and the rotation; None where it is not
    the result of one."""
    argument = _argument(index)
    view = view_of(argument) if argument is not None else None
    if view is None or view.base.target is not torch.ops.torch_max_backend.rotary_embedding.default:
        return None
    if not view.dense() or not same_sizes(view.sizes, view.base.meta["val"].shape):
        return None
    arguments: Any = view.base.args
    x, sin, cos, first = arguments
    values = _values.get()
    return _strided(view_of(x)), Rotation(values[sin], values[cos], first)


def _argument(index: int) -> Node | None:
    node = _node.get(None)
    argument = node.args[index] if node is not None else None
    return argument if isinstance(argument, Node) else None


def _strided(view: View) -> Strided:
    strides = tuple(to_int_or_dim(stride) for stride in view.strides)
    return Strided(_values.get()[view.base], strides, to_int_or_dim(view.offset))


_ON_THE_WAY = {
    aten.clone.default,
    aten.mul.Tensor,
    aten.permute.default,
    aten.view.default,
    aten._unsafe_view.default,
}
"""Scales and other shapes; axes that are swapped and swapped back, as by nn.MultiheadAttention."""


def residual() -> TensorValue | None:
    """What the node's result is added to, perhaps scaled: the other branch of a residual connection
    (He et al., 2016). None where that does not lie in memory for sure, or has other sizes."""
    value = _node.get(None)
    while value is not None and len(value.users) == 1:
        (user,) = value.users
        if user.target is aten.add.Tensor:
            others = [node for node in user.all_input_nodes if node is not value]
            return _in_memory(others[0], value.meta["val"]) if len(others) == 1 else None
        value = user if user.target in _ON_THE_WAY else None
    return None


def _in_memory(node: Node, like: torch.Tensor) -> TensorValue | None:
    """A node's value of those sizes, if it is an input or has several uses: MAX may join what
    computes it to a single one."""
    value = _values.get().get(node)
    joined = node.op != "placeholder" and len(node.users) == 1
    if not isinstance(value, TensorValue) or joined:
        return None
    same = list(value.shape) == [to_dim(size) for size in like.shape]
    return value if same and node.meta["val"].dtype == like.dtype else None


def constant_of(value: TensorValue) -> torch.Tensor | None:
    """The numbers of a value that is a constant of the graph; None where only a run tells them."""
    for node, lowered in _values.get({}).items():
        if lowered is value and node.op == "get_attr":
            with real_tensors():
                constant: torch.Tensor = getattr(node.graph.owning_module, str(node.target))
                return constant.detach().cpu()
    return None


def operand_is_zero(index: int) -> bool:
    """Whether an argument of the node is the number 0 or a tensor filled with it."""
    node = _node.get(None)
    return node is not None and len(node.args) > index and is_zero(node.args[index])


_MOVED = {
    aten.alias.default,
    aten.clone.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.view.default,
    aten._to_copy.default,
    torch.ops.prims.convert_element_type.default,
}
_FILLED = {aten.full.default, aten.full_like.default}


def is_zero(arg: Any) -> bool:
    """Whether an argument of a node is the number 0 or a tensor filled with it."""
    if isinstance(arg, int | float):
        return arg == 0
    if not isinstance(arg, Node):
        return False
    if arg.target in _MOVED:
        return is_zero(arg.args[0])
    return arg.target in _FILLED and is_zero(arg.args[1])
