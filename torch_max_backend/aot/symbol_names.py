"""The user's names of dynamic sizes: torch.export calls them s6 and keeps no other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from torch_max_backend.dims import expression


def symbol_names(
    program: ExportedProgram,
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
) -> dict[str, str]:
    """Names by symbol, as ``dynamic_shapes`` gives them: ``Dim("batch")`` names its symbol "batch".
    None of them where one name would stand for two symbols.

    Args:
        program: what ``torch.export.export`` made of the others.
        forward: the model's, for the names of its positional arguments.
    """
    given = dict(inspect.signature(forward).bind_partial(*args).arguments)
    given |= {key: kwargs[key] for key in program.call_spec.in_spec.child(1).context}
    if not isinstance(dynamic_shapes, Mapping):
        dynamic_shapes = dict(zip(given, dynamic_shapes, strict=False))
    sizes = [size for key in given for size in _by_leaf(given[key], dynamic_shapes.get(key))]
    kinds = [spec.kind for spec in program.graph_signature.input_specs]
    placeholders = program.graph.find_nodes(op="placeholder")
    inputs = [
        node.meta["val"]
        for node, kind in zip(placeholders, kinds, strict=True)
        if kind == InputKind.USER_INPUT
    ]
    names: dict[str, str] = {}
    for value, dims in zip(inputs, sizes, strict=True):
        for axis, dim in _by_axis(dims):
            size = expression(value.shape[axis])
            if isinstance(dim, Dim) and isinstance(size, sympy.Symbol):
                names[size.name] = dim.__name__
    return names if len({*names.values()}) == len(names) else {}


def renamed(size: sympy.Expr, names: Mapping[str, str]) -> sympy.Expr:
    """An expression of sizes with the user's names of its symbols."""
    return size.xreplace(
        {
            symbol: sympy.Symbol(names[symbol.name], integer=True)
            for symbol in size.free_symbols
            if symbol.name in names
        }
    )


def _by_leaf(value: Any, spec: Any) -> Iterator[Any]:
    """For each leaf of one argument what ``dynamic_shapes`` says of it."""
    if isinstance(value, Mapping) and isinstance(spec, Mapping):
        for key in value:
            yield from _by_leaf(value[key], spec.get(key))
    elif isinstance(value, list | tuple) and isinstance(spec, list | tuple):
        for item, item_spec in zip(value, spec, strict=True):
            yield from _by_leaf(item, item_spec)
    elif isinstance(value, torch.Tensor):
        yield spec
    else:
        yield from [None] * len(tree_leaves(value))


def _by_axis(sizes: Any) -> Iterator[tuple[int, Any]]:
    if isinstance(sizes, Mapping):
        yield from sizes.items()
    elif sizes is not None:
        yield from enumerate(sizes)
