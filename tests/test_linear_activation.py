"""The pass that joins a linear layer with the activation behind it: where it does, and where not.

No compile; the numbers are compared in test_ops_matmul.py.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.tracing import trace
from vit.helpers import SRelu

FUSED = torch.ops.torch_max_backend.linear_activation.default


def fused(function, *args, dynamic=False):
    return trace(function, *args, dynamic=dynamic).graph.find_nodes(
        op="call_function", target=FUSED
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_of_an_encoder_that_normalises_after(dtype, dynamic):
    """Where the norm comes first all of the MLP is one kernel, see test_blocks.py."""
    layers = [
        nn.TransformerEncoderLayer(16, 2, 24, activation="gelu", batch_first=True, dtype=dtype)
        for _ in range(3)
    ]
    x = torch.randn(2, 9, 16, dtype=dtype)
    assert len(fused(nn.Sequential(*layers).eval(), x, dynamic=dynamic)) == 3


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "quick_gelu": QuickGELU(),
    "silu": nn.SiLU(),
    "squared_relu": SRelu(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_and_the_module_are_kept(name):
    layer = nn.Sequential(nn.Linear(8, 4), ACTIVATIONS[name])
    (node,) = fused(layer, torch.randn(3, 8))
    assert node.kwargs == {"activation": name}
    assert "nn_module_stack" in node.meta


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_eager_answer_of_background_mode_is_the_same(name):
    layer, x = nn.Sequential(nn.Linear(8, 4), ACTIVATIONS[name]), torch.randn(2, 3, 8)
    gm = trace(layer, x)
    order = [layer[0].weight, layer[0].bias, x]
    with torch.no_grad():
        placeholders = [node.meta["val"].shape for node in gm.graph.find_nodes(op="placeholder")]
        args = [next(a for a in order if a.shape == shape) for shape in placeholders]
        torch.testing.assert_close(gm(*args)[0], layer(x))


LINEAR = nn.Linear(8, 4)
ELSEWHERE = {
    "the linear layer's result is used again": lambda x: (y := LINEAR(x), F.gelu(y)),
    "no bias": lambda x: F.gelu(F.linear(x, LINEAR.weight)),
    "a weight that is not transposed": lambda x: F.gelu(
        torch.addmm(LINEAR.bias, x, x.new_ones(8, 4))
    ),
    "a bias of other shape": lambda x: F.gelu(torch.addmm(x[:, :4], x, LINEAR.weight.t())),
    "scaled": lambda x: F.gelu(torch.addmm(LINEAR.bias, x, LINEAR.weight.t(), beta=2)),
    "another activation": lambda x: F.relu(LINEAR(x)),
    "another power": lambda x: F.relu(LINEAR(x)) ** 3,
    "the square of another activation": lambda x: F.relu6(LINEAR(x)) ** 2,
    "what is squared is used again": lambda x: (y := F.relu(LINEAR(x)), y**2),
    "something in between": lambda x: F.gelu(LINEAR(x) + 1),
}


@pytest.mark.parametrize("why", ELSEWHERE)
def test_others_are_left_alone(why):
    assert not fused(ELSEWHERE[why], torch.randn(3, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_left_alone(dtype):
    layer = nn.Sequential(nn.Linear(8, 4), nn.GELU()).to(dtype)
    assert not fused(layer, torch.randn(3, 8, dtype=dtype))
