"""Branches of a transformer's block: x + layer(... norm(x) ...), as two passes look for them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from torch_max_backend.passes.linear_activation import linear_operands
from torch_max_backend.passes.matching import RESHAPES, arguments, has_few_rows
from torch_max_backend.views import same_sizes

aten = torch.ops.aten
ours = torch.ops.torch_max_backend

_SAME_NUMBERS = {*RESHAPES, aten.alias.default, aten.clone.default}
"""Dropout is a clone at inference."""


@dataclass(frozen=True)
class Branch:
    """x + scale * layer, over (..., K), and the operands of that linear layer."""

    total: Node
    x: Node
    scale: Node | None
    input: Node
    weight: Node
    bias: Node


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last axis, of one dtype; by the root mean square unless centred."""

    x: Node
    gain: Node | None
    shift: Node | None
    eps: float
    centred: bool


def residual_branches(gm: GraphModule) -> Iterator[Branch]:
    """Those whose linear layer has no other use, and not so few rows that its weight is better
    read as it lies."""
    for total in gm.graph.find_nodes(op="call_function", target=aten.add.Tensor):
        x, branch = total.args
        if total.kwargs or not isinstance(x, Node) or not isinstance(branch, Node):
            continue
        for value, other in ((x, branch), (branch, x)):
            scaled, scale = _scaled(other)
            last = source_of(scaled)
            operands = linear_operands(last) if last is not None else None
            if last is None or operands is None or has_few_rows(last):
                continue
            if _is_like(total, value):
                yield Branch(total, value, scale, *operands)
                break


def source_of(value: Node) -> Node | None:
    """What a value is a reshape or copy of, perhaps itself, if nothing else uses it on the way."""
    while len(value.users) == 1 and value.target in _SAME_NUMBERS:
        value = value.args[0]  # type: ignore[assignment]
    return value if len(value.users) == 1 else None


def norm_of(result: Any) -> Norm | None:
    """The normalisation that this is the only result in use of."""
    norm: Any = result
    centred = result.target is operator.getitem and result.args[1] == 0
    if centred:
        norm = result.args[0]
        if norm.target is not aten.native_layer_norm.default or len(norm.users) != 1:
            return None
        x, shape, gain, shift, eps = norm.args
    elif norm.target is ours.rms_norm.default:
        x, shape, gain, eps = norm.args
        shift = None
    else:
        return None
    dtypes = {value.meta["val"].dtype for value in (x, gain, shift) if value is not None}
    return Norm(x, gain, shift, eps, centred) if len(shape) == len(dtypes) == 1 else None


def have_sizes(*weights: tuple[Any, Any, Any]) -> bool:
    """Whether weights have as many rows and columns: what is reshaped between layers may be cut
    into other rows than those of x."""
    return all(same_sizes(w.meta["val"].shape, [rows, columns]) for w, rows, columns in weights)


def replace(gm: GraphModule, branch: Branch, target: Any, *args: Any, **kwargs: Any) -> None:
    """Puts a call, of a result like x, in the place of the sum."""
    with gm.graph.inserting_before(branch.total):
        node = gm.graph.call_function(target, args, kwargs)
    node.meta = dict(branch.total.meta)
    branch.total.replace_all_uses_with(node)
    gm.graph.erase_node(branch.total)


def _scaled(branch: Node) -> tuple[Node, Node | None]:
    """What is multiplied by a number per column (layer scale, Touvron et al., 2021), and those."""
    factors = arguments(branch, aten.mul.Tensor)
    if factors is None or len(branch.users) != 1 or not all(isinstance(f, Node) for f in factors):
        return branch, None
    for value, scale in (factors, factors[::-1]):
        columns = branch.meta["val"].shape[-1:]
        sizes = getattr(scale.meta["val"], "shape", ())  # of a number none
        if _is_like(branch, value) and same_sizes(sizes, columns):
            return value, scale
    return branch, None


def _is_like(a: Node, b: Node) -> bool:
    first, second = a.meta["val"], b.meta["val"]
    tensors = isinstance(first, Tensor) and isinstance(second, Tensor)
    return tensors and first.dtype == second.dtype and same_sizes(first.shape, second.shape)
