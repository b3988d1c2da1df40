"""The pass that writes torchao's product of int8 matrices as one operator; no compile.

The numbers are compared in test_ops_matmul.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchao.quantization import Int8DynamicActivationInt8WeightConfig

from tests.tracing import trace
from vit import ViT, ViTConfig

PRODUCT = torch.ops.aten._int_mm.default


def written(
    a: Tensor,
    b: Tensor,
    *,
    shift: int = 128,
    factor: int = 128,
    axis: int = 0,
    summed: Tensor | None = None,
    alpha: int = 1,
) -> Tensor:
    shifted = torch.add(a.to(torch.int32), shift, alpha=alpha).to(torch.uint8)
    total = (b if summed is None else summed).sum(axis, keepdim=True, dtype=torch.int32)
    return torch._int_mm(shifted, b) - total * factor


def left_operand(function, *args, dynamic=False) -> tuple[torch.dtype, int]:
    """The dtype of the one product's left operand, and how many operators there are."""
    graph = trace(function, *args, dynamic=dynamic).graph
    (product,) = graph.find_nodes(op="call_function", target=PRODUCT)
    tensors = [n for n in graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    calls = [node for node in tensors if node.op == "call_function"]
    return product.args[0].meta["val"].dtype, len(calls)


def matrix(*shape: int, low: int = -128, high: int = 128) -> Tensor:
    return torch.randint(low, high, shape, dtype=torch.int8)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_shift_is_undone(dynamic: bool):
    operands = matrix(5, 8), matrix(8, 6)
    found = left_operand(lambda a, b: written(a, b), *operands, dynamic=dynamic)
    assert found == (torch.int8, 1)


def test_every_linear_layer_of_a_vit_that_torchao_quantised():
    config = ViTConfig(3, [4, 4], [8, 8], 2, 16, 32, 2, dtype=torch.float32)
    int8 = Int8DynamicActivationInt8WeightConfig()
    model = ViT(config, int8, int8, int8).eval()
    graph = trace(model, torch.randn(2, 3, 8, 8)).graph
    products = graph.find_nodes(op="call_function", target=PRODUCT)
    assert len(products) == 2 * 4
    assert {node.args[0].meta["val"].dtype for node in products} == {torch.int8}


def test_with_a_linear_layers_weight():
    found = left_operand(lambda a, w: written(a, w.t()), matrix(5, 8), matrix(6, 8))
    assert found == (torch.int8, 2)


@pytest.mark.parametrize(
    "other",
    [{"shift": 127}, {"factor": 127}, {"axis": 1}, {"alpha": 2}, {"summed": matrix(8, 8, low=1)}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_anything_else_stays(other):
    assert left_operand(lambda a, b: written(a, b, **other), matrix(8, 8), matrix(8, 8))[0] == (
        torch.uint8
    )


def test_a_left_operand_that_is_no_int8_stays():
    wide = torch.randint(-128, 128, (5, 8), dtype=torch.int16)
    assert left_operand(written, wide, matrix(8, 6))[0] == torch.uint8
