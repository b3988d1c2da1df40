"""The pass that writes torchao's quantisation of activations as one operator; no compile.

The numbers are compared in test_ops_matmul.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

from tests.tracing import trace
from vit import ViT, ViTConfig

FUSED = torch.ops.torch_max_backend.quantize_rows.default
aten = torch.ops.aten


def fused(function: Callable[..., Any], *args: Any, dynamic: bool = False) -> int:
    graph = trace(function, *args, dynamic=dynamic).graph
    found = graph.find_nodes(op="call_function", target=FUSED)
    if found:
        assert not graph.find_nodes(op="call_function", target=aten.amin.default)
        assert not graph.find_nodes(op="call_function", target=aten.round.default)
    return len(found)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_linear_layer_of_a_vit_that_torchao_quantised(dtype, dynamic):
    config = ViTConfig(3, [4, 4], [8, 8], 2, 16, 32, 2, dtype=dtype)
    int8 = Int8DynamicActivationInt8WeightConfig()
    model = ViT(config, int8, int8, int8).eval()
    assert fused(model, torch.randn(2, 3, 8, 8, dtype=dtype), dynamic=dynamic) == 2 * 4


ACTIVATIONS = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU()}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_before_it_goes_with_it(name):
    layer = nn.Sequential(ACTIVATIONS[name], nn.Linear(8, 4)).eval()
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    graph = trace(layer, torch.randn(2, 3, 8)).graph
    (node,) = graph.find_nodes(op="call_function", target=FUSED)
    assert node.kwargs == {"activation": name}
    assert not graph.find_nodes(op="call_function", target=aten.gelu.default)
    assert not graph.find_nodes(op="call_function", target=aten.silu.default)


def test_a_gelu_that_is_used_elsewhere_stays():
    def twice(x: Tensor) -> tuple[Tensor, Tensor]:
        activated = torch.nn.functional.gelu(x)
        return written(activated), activated

    graph = trace(twice, torch.randn(4, 4)).graph
    (node,) = graph.find_nodes(op="call_function", target=FUSED)
    assert node.args[0].target is aten.gelu.default


def test_the_eager_answer_of_background_mode_is_the_same():
    layer = nn.Sequential(nn.Linear(8, 4)).eval()
    quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    x = torch.randn(3, 8)
    rows, scales = FUSED(x, 127.5, torch.finfo(torch.float32).eps)
    weight = layer[0].weight
    expected = (rows.float() * scales) @ (weight.qdata.float() * weight.scale).t() + layer[0].bias
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def written(
    x: Tensor,
    *,
    axis: int = -1,
    floor: float = 0.0,
    limit: int = 127,
    offset: int = 0,
    dtype: torch.dtype = torch.int8,
    scaled: Tensor | None = None,
) -> Tensor:
    least, most = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
    least = torch.minimum(least, torch.full_like(least, floor))
    most = torch.maximum(most, torch.full_like(most, floor))
    scale = (torch.maximum(-least, most) / 127.5).clamp(min=1e-6)
    rounded = ((x if scaled is None else scaled) * scale.reciprocal()).round() + offset
    return rounded.clamp(-128, limit).to(dtype)


def test_written_by_hand():
    assert fused(written, torch.randn(4, 4)) == 1


OTHERS = {
    "other axis": {"axis": 0},
    "at least one": {"floor": 1.0},
    "other limit": {"limit": 126},
    "a zero point": {"offset": 3},
    "other dtype": {"dtype": torch.int16},
    "other rows": {"scaled": torch.randn(4, 4)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_stays(name):
    assert fused(lambda x: written(x, **OTHERS[name]), torch.randn(4, 4)) == 0


def test_float64_stays():
    assert fused(written, torch.randn(4, 4, dtype=torch.float64)) == 0
