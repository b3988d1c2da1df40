"""What AOTAutograd decomposes: PyTorch's core decompositions less what the table lowers whole.

Kept whole because MAX has a kernel or a better form: normalisations, softmax, gelu, attention
(composites.py), resizing (composites.py). Computed once from the table; never mutated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from torch._decomp import core_aten_decompositions

from torch_max_backend import registry, tables  # noqa: F401  fills the registry


@cache
def decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Overload -> decomposition for every core decomposition that has no lowering."""
    table = core_aten_decompositions()
    return MappingProxyType(
        {overload: f for overload, f in table.items() if registry.find(overload) is None}
    )
