"""What is decomposed: PyTorch's core decompositions, and those of multi-head attention, less what
the table lowers whole.

Kept whole because MAX has a kernel or a better form: normalisations, softmax, gelu, attention and
resizing (composites). Made anew for each program: users may register lowerings, libraries
operators, after the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from torch._decomp import core_aten_decompositions

from torch_max_backend import registry, tables  # noqa: F401  fills the registry
from torch_max_backend.composites import multi_head_attention

Decompositions: TypeAlias = Mapping[Any, Callable[..., Any]]
"""Overload -> decomposition."""


def decompositions() -> Decompositions:
    """For AOTAutograd: every decomposition of an operator that has no lowering."""
    return _not_lowered(without_composites())


def export_decompositions() -> Decompositions:
    """For ``ExportedProgram.run_decompositions``, which keeps composite operators that it is not
    told of."""
    return _not_lowered(core_aten_decompositions())


def without_composites() -> Decompositions:
    """PyTorch's core decompositions but those of composite operators (CompositeImplicitAutograd),
    which AOTAutograd expands by itself.

    The public ``core_aten_decompositions`` looks through all 3,000 overloads for these, which is a
    tenth of a second of every start.
    """
    from torch._decomp import _core_aten_decompositions_post_autograd

    return _core_aten_decompositions_post_autograd()


def _not_lowered(table: Decompositions) -> Decompositions:
    table = {**table, **multi_head_attention.DECOMPOSITIONS}
    return MappingProxyType(
        {overload: f for overload, f in table.items() if registry.find(overload) is None}
    )
