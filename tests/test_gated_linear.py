"""The pass that finds gated linear units: where it does, and where not. No compile; the numbers are
compared in test_ops_matmul.py and test_freezing.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.tracing import trace
from vit import ViT, ViTConfig

FUSED = torch.ops.torch_max_backend.gated_linear.default
LAYER = nn.Linear(8, 256)


def fused(function, *args, **kwargs):
    return trace(function, *args, **kwargs).graph.find_nodes(op="call_function", target=FUSED)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["swiglu", "geglu"])
def test_every_block_of_a_vit(activation, dtype, dynamic):
    config = ViTConfig(3, [4, 4], [8, 8], 3, 16, 128, 2, dtype=dtype, activation=activation)
    images = torch.randn(2, 3, 8, 8, dtype=dtype)
    nodes = fused(ViT(config).eval(), images, dynamic=dynamic)
    kind = "silu" if activation == "swiglu" else "gelu"
    assert [node.kwargs for node in nodes] == [{"activation": kind, "gates_first": False}] * 3
    assert "nn_module_stack" in nodes[0].meta


def second_half(x):
    gated, gates = LAYER(x).chunk(2, -1)
    return gated * F.silu(gates)


def first_half(x):
    """As DINOv2's giant."""
    gates, gated = LAYER(x).split(128, -1)
    return F.silu(gates) * gated


def sliced(x):
    y = LAYER(x)
    return F.gelu(y[..., 128:], approximate="tanh") * y[..., :128]


WRITTEN = {second_half: False, first_half: True, sliced: False}


@pytest.mark.parametrize("shape", [(10, 8), (2, 5, 8), (2, 3, 5, 8)])
@pytest.mark.parametrize("function", WRITTEN)
def test_ways_to_write_it(function, shape):
    x = torch.randn(shape)
    gm = trace(function, x)
    (node,) = gm.graph.find_nodes(op="call_function", target=FUSED)
    assert node.kwargs["gates_first"] is WRITTEN[function]
    order = [LAYER.weight, LAYER.bias, x]
    shapes = [node.meta["val"].shape for node in gm.graph.find_nodes(op="placeholder")]
    with torch.no_grad():  # the eager answer of background mode
        got = gm(*[next(a for a in order if a.shape == shape) for shape in shapes])[0]
        torch.testing.assert_close(got, function(x))


def used_twice(x):
    gated, gates = LAYER(x).chunk(2, -1)
    return gated * F.silu(gates), gates


def activated_returned(x):
    gated, gates = LAYER(x).chunk(2, -1)
    activated = F.silu(gates)
    return gated * activated, activated


def thirds(x):
    gated, gates = LAYER(x).split([192, 64], -1)
    return gated[..., :64] * F.silu(gates)


def turned(x):
    gated, gates = LAYER(x).mT.chunk(2, -2)
    return gated * F.silu(gates)


ELSEWHERE = {
    "a half is used again": used_twice,
    "the activation is used again": activated_returned,
    "parts of other sizes": thirds,
    "turned": turned,
    "another layer": lambda x: F.silu(LAYER(x)[..., :128]) * LAYER(x + 1)[..., 128:],
    "one half twice": lambda x: F.silu((y := LAYER(x))[..., :128]) * y[..., :128],
    "halves along the rows": lambda x: F.silu((y := LAYER(x))[:5]) * y[5:],
    "no bias": lambda x: F.silu((y := F.linear(x, LAYER.weight))[..., :128]) * y[..., 128:],
    "another activation": lambda x: F.relu((y := LAYER(x))[..., :128]) * y[..., 128:],
    "summed": lambda x: F.silu((y := LAYER(x))[..., :128]) + y[..., 128:],
    "rows from a place that only a run tells": lambda x: (
        F.silu((y := LAYER(x))[len(x) // 2 :, :128]) * y[len(x) // 2 :, 128:]
    ),
    "narrower than a panel": lambda x: (
        F.silu((y := F.linear(x, LAYER.weight[:64], LAYER.bias[:64]))[..., :32]) * y[..., 32:]
    ),
}


@pytest.mark.parametrize("why", ELSEWHERE)
def test_others_are_left_alone(why):
    for dynamic in (False, True):
        assert not fused(ELSEWHERE[why], torch.randn(10, 8), dynamic=dynamic)


def test_a_few_rows_are_left_alone():
    assert fused(second_half, torch.randn(6, 8))
    assert not fused(second_half, torch.randn(5, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_left_alone(dtype):
    layer = nn.Linear(8, 256).to(dtype)
    x = torch.randn(10, 8, dtype=dtype)
    assert not fused(lambda x: F.silu((y := layer(x))[..., :128]) * y[..., 128:], x)
