"""The pass that finds SiLU and the GELU of CLIP written out: where it does, and where not. No
compile; the numbers are compared in test_ops_matmul.py and test_ops_pointwise.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tracing import trace

SILU = torch.ops.aten.silu.default
QUICK_GELU = torch.ops.torch_max_backend.quick_gelu.default
WRITTEN = {
    "silu": (lambda x: x * torch.sigmoid(x), SILU),
    "silu the other way": (lambda x: x.sigmoid() * x, SILU),
    "silu by a factor of 1": (lambda x: x * (x * 1.0).sigmoid(), SILU),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), QUICK_GELU),
    "quick_gelu the other way": (lambda x: torch.sigmoid(x * 1.702) * x, QUICK_GELU),
}


def targets(function, *args, **kwargs):
    gm = trace(function, *args, **kwargs)
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_written_out(name, dynamic, dtype):
    function, expected = WRITTEN[name]
    assert targets(function, torch.randn(3, 4, dtype=dtype), dynamic=dynamic) == [expected]


@pytest.mark.parametrize("name", ["silu", "quick_gelu"])
def test_the_eager_answer_of_background_mode_is_the_same(name):
    function, _ = WRITTEN[name]
    x = torch.randn(3, 4)
    torch.testing.assert_close(trace(function, x)(x)[0], function(x))


def test_every_block_of_a_clip():
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    model = transformers.CLIPVisionModel(config).eval()
    gm = trace(lambda x: model(x).last_hidden_state, torch.randn(2, 3, 8, 8))
    nodes = gm.graph.find_nodes(op="call_function", target=torch.ops.torch_max_backend.mlp.default)
    assert [node.kwargs["activation"] for node in nodes] == ["quick_gelu"] * 2


GATE = nn.Linear(4, 4)
ELSEWHERE = {
    "another factor": lambda x: x * torch.sigmoid(1.5 * x),
    "a factor for each place": lambda x: x * torch.sigmoid(GATE.bias * x),
    "a gate of something else": lambda x: x * torch.sigmoid(GATE(x)),
    "summed": lambda x: x + torch.sigmoid(x),
    "another function": lambda x: x * torch.tanh(x),
    "scaled outside": lambda x: (x * 2) * torch.sigmoid(x),
    "float64": lambda x: x.double() * torch.sigmoid(x.double()),
}


@pytest.mark.parametrize("why", ELSEWHERE)
def test_others_are_left_alone(why):
    assert not {SILU, QUICK_GELU} & {*targets(ELSEWHERE[why], torch.randn(3, 4))}


def test_on_gpu_as_written():
    assert QUICK_GELU not in targets(WRITTEN["quick_gelu"][0], torch.randn(3, 4), on_gpu=True)
