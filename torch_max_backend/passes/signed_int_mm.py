"""Products of int8 matrices, as torchao writes them for processors, back in one operator.

x86 multiplies unsigned by signed bytes; so torchao adds 128 to the left operand and takes 128 times
the column sums of the right one, a weight, off the product. Our kernel does so itself and sums up
while it packs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from torch_max_backend.passes.matching import arguments

aten = torch.ops.aten
_SHIFT = 128


def sign_int_mm(gm: GraphModule) -> None:
    """Replaces ``_int_mm(a + 128, b) - 128 * b.sum(0)`` by ``_int_mm(a, b)`` for int8 a."""
    found = False
    for node in gm.graph.find_nodes(op="call_function", target=aten.sub.Tensor):
        operands = _operands(node)
        if operands is None:
            continue
        found = True
        with gm.graph.inserting_before(node):
            product = gm.graph.call_function(aten._int_mm.default, operands)
        product.meta = dict(node.meta)
        node.replace_all_uses_with(product)
    if found:
        gm.graph.eliminate_dead_code()
        gm.recompile()


def _operands(difference: Node) -> tuple[Any, Any] | None:
    product, excess = arguments(difference, aten.sub.Tensor) or (None, None)
    shifted, weight = arguments(product, aten._int_mm.default) or (None, None)
    (widened,) = arguments(shifted, aten._to_copy.default) or (None,)
    sums, *factor = arguments(excess, aten.mul.Tensor) or (None,)
    total, *number = arguments(widened, aten.add.Tensor) or (None,)
    (left,) = arguments(total, aten._to_copy.default) or (None,)
    if arguments(sums, aten.sum.dim_IntList) != (weight, [0], True):
        return None
    if factor != [_SHIFT] or number != [_SHIFT]:
        return None
    nodes = (left, widened, shifted, sums)
    dtypes = [node.meta["val"].dtype for node in nodes if node is not None]
    if dtypes != [torch.int8, torch.int32, torch.uint8, torch.int32]:
        return None
    return left, weight
