"""The pass that finds attention written out: where it does, and where not. No compile; the numbers
are compared in test_ops_attention.py and test_models_transformers.py."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import torch_max_backend
from tests.tracing import trace
from torch_max_backend.aot import exporting

FOUND = torch.ops.torch_max_backend.softmax_attention.default
BATCH, HEADS, LENGTH, WIDTH = 2, 3, 5, 8


def operands(dtype=torch.float32):
    return [torch.randn(BATCH, HEADS, n, WIDTH, dtype=dtype) for n in (LENGTH, 7, 7)]


def scores(q, k):
    return q @ k.transpose(-2, -1)


def plain(q, k, v):
    return torch.softmax(scores(q, k) / math.sqrt(WIDTH), -1) @ v


def query_scaled(q, k, v):
    return F.dropout(scores(q * 0.5, k).softmax(-1), 0.1, training=False) @ v


def masked(q, k, v):
    mask = torch.arange(7, dtype=q.dtype).expand(1, 1, LENGTH, 7) * 0.1
    return torch.softmax(scores(q, k) * 0.3 + mask, -1) @ v


def mask_first(q, k, v):
    return torch.softmax(torch.arange(7, dtype=q.dtype) + scores(q, k), -1) @ v


def in_float32(q, k, v):
    return torch.softmax(scores(q, k) * 0.3, -1, dtype=torch.float32).to(q.dtype) @ v


def projected(q, k, v):
    """As models have it: heads are views of one projection."""
    x = torch.cat([q.transpose(1, 2).reshape(BATCH, LENGTH, HEADS * WIDTH)] * 3, -1) * 2
    q, k, v = x.view(BATCH, LENGTH, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    return plain(q, k, v).transpose(1, 2).reshape(BATCH, LENGTH, HEADS * WIDTH)


def found(function, *args, **kwargs):
    return trace(function, *args, **kwargs).graph.find_nodes(op="call_function", target=FOUND)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("function", [plain, query_scaled, masked, mask_first, in_float32])
def test_attention_written_out(function, dynamic, dtype):
    (node,) = found(function, *operands(dtype), dynamic=dynamic)
    scale = {plain: WIDTH**-0.5, query_scaled: 0.5, mask_first: 1.0}.get(function, 0.3)
    assert node.args[4] == pytest.approx(scale)
    assert (node.args[3] is not None) == (function in (masked, mask_first))


def test_the_heads_of_a_projection():
    """The operands are the views of the projection, no copies of them."""
    gm = trace(projected, *operands())
    (node,) = gm.graph.find_nodes(op="call_function", target=FOUND)
    assert all(arg.target is not torch.ops.aten.clone.default for arg in node.args[:3])
    assert not gm.graph.find_nodes(op="call_function", target=torch.ops.aten.bmm.default)


@pytest.mark.parametrize("function", [plain, masked, in_float32])
def test_the_eager_answer_of_background_mode_is_the_same(function):
    inputs = operands()
    gm = trace(lambda q, k, v: function(q + 0, k + 0, v + 0), *inputs)
    assert gm.graph.find_nodes(op="call_function", target=FOUND)
    torch.testing.assert_close(gm(*inputs)[0], function(*inputs))


class InFloat32(torch.nn.Module):
    def forward(self, q, k, v):
        return in_float32(q, k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_an_exported_model(dtype, monkeypatch, tmp_path):
    """torch.export asserts the dtype of what ``.to`` is called on: another user of the softmax."""
    compiled = []
    monkeypatch.setattr(exporting, "compile_ahead", lambda gm, _: compiled.append(gm) or b"")
    torch_max_backend.export(InFloat32().eval(), tuple(operands(dtype)), path=tmp_path / "a.max")
    (gm,) = compiled
    assert len(gm.graph.find_nodes(op="call_function", target=FOUND)) == 1


def weights_returned(q, k, v):
    weights = scores(q, k).softmax(-1)
    return weights @ v, weights


ELSEWHERE = {
    "the weights are returned": weights_returned,
    "the scores are returned": lambda q, k, v: ((s := scores(q, k)).softmax(-1) @ v, s),
    "another axis": lambda q, k, v: scores(q, k).softmax(-2) @ v,
    "the mask is scaled too": lambda q, k, v: (
        ((scores(q, k) + 1.5 * k.sum()) * 0.3).softmax(-1) @ v
    ),
    "dropout": lambda q, k, v: F.dropout(scores(q, k).softmax(-1), 0.5, training=True) @ v,
    "another function": lambda q, k, v: scores(q, k).relu().softmax(-1) @ v,
    "no product": lambda q, k, v: (q * 2)[..., :7].softmax(-1) @ v,
    "values on the left": lambda q, k, v: v.mT @ scores(q, k).softmax(-1).mT,
    "without heads": lambda q, k, v: (q[:, 0] @ k[:, 0].mT).softmax(-1) @ v[:, 0],
    "float64": lambda q, k, v: plain(q.double(), k.double(), v.double()),
    "a softmax in float64": lambda q, k, v: scores(q, k).double().softmax(-1).float() @ v,
    "a mask of another kind": lambda q, k, v: (scores(q, k) + torch.arange(7)).softmax(-1) @ v,
    "weights in another dtype": lambda q, k, v: (
        scores(q.bfloat16(), k.bfloat16()).softmax(-1, dtype=torch.float32) @ v
    ),
}


@pytest.mark.parametrize("why", ELSEWHERE)
def test_others_are_left_alone(why):
    assert not found(ELSEWHERE[why], *operands())
