"""x * sigmoid(x) and x * sigmoid(1.702 x), written out, as one operator on CPU.

The first is SiLU; the second, with which CLIP was trained, is an approximation of GELU (Hendrycks
and Gimpel, 2016). Then a linear layer before can take them along.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule

from torch_max_backend.passes import operators  # noqa: F401  defines quick_gelu
from torch_max_backend.passes.matching import arguments

aten = torch.ops.aten

_OPERATORS: dict[Any, Any] = {
    1.0: aten.silu.default,
    1.702: torch.ops.torch_max_backend.quick_gelu.default,
}
"""By the factor in the sigmoid."""
_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


def fuse_swish(gm: GraphModule) -> None:
    """Replaces such products."""
    fused = False
    for product in gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor):
        operands: Any = product.args
        found = _swish(*operands) or _swish(*reversed(operands))
        value = product.meta["val"]
        if found is None or value.device.type != "cpu" or value.dtype not in _DTYPES:
            continue
        fused = True
        x, target = found
        with gm.graph.inserting_before(product):
            node = gm.graph.call_function(target, (x,))
        node.meta = dict(product.meta)
        product.replace_all_uses_with(node)
    if fused:
        gm.graph.eliminate_dead_code()
        gm.recompile()


def _swish(x: Any, gate: Any) -> tuple[Any, Any] | None:
    """x and the operator, where the gate is a sigmoid of x or of x times a factor."""
    (scaled,) = arguments(gate, aten.sigmoid.default) or (None,)
    source, factor = arguments(scaled, aten.mul.Tensor) or (scaled, 1.0)
    if scaled is None or source is not x or factor not in _OPERATORS:
        return None
    return x, _OPERATORS[factor]
