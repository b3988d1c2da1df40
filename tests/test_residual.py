"""Which linear layers know the other branch of their residual connection. No compile: read from
the MAX graph; that results are right is tested with the models and in test_ops_matmul.py."""

from __future__ import annotations

import re

import pytest
import torch
from max.graph import Module
from torch import nn

from tests.tracing import trace
from torch_max_backend.graph_builder import build_graph
from torch_max_backend.options import MaxOptions
from vit import ViT, ViTConfig


def layers(function, *args, dynamic=False) -> list[bool]:
    """Of each linear layer whether it fetches the other branch."""
    graph, _ = build_graph(trace(function, *args, dynamic=dynamic), Module(), "g0", MaxOptions())
    return [found == "true" for found in re.findall(r"fetched = (true|false)", str(graph))]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_of_two_in_every_block_of_a_vit(dtype, dynamic):
    """Its heads are too narrow for attention as one kernel; the MLP is one."""
    config = ViTConfig(3, [4, 4], [8, 8], 3, 16, 32, 2, dtype=dtype, activation="gelu")
    images = torch.randn(2, 3, 8, 8, dtype=dtype)
    found = layers(ViT(config).eval(), images, dynamic=dynamic)
    qkv_out = [False, True]
    assert found[1:7] == 3 * qkv_out
    assert not any(found[:1] + found[7:])  # patches, head


LINEAR = nn.Linear(8, 8)
GAIN = nn.Parameter(torch.randn(8))
X = torch.randn(2, 3, 8)
FOUND = {
    "as it is": lambda x: x + LINEAR(x),
    "on the right": lambda x: LINEAR(x) + x,
    "scaled": lambda x: x + GAIN * LINEAR(x),
}
ELSEWHERE = {
    "used for nothing else": lambda x, y: y.exp() + LINEAR(x),
    "broadcast": lambda x, y: (y[:, :1] + LINEAR(x), y[:, :1] * 2),
    "of another dtype": lambda x, y: LINEAR(x) + x.double(),
    "the result is used again": lambda x, y: (z := LINEAR(x), x + z),
    "twice the result": lambda x, y: (z := LINEAR(x)) + z,
    "through a nonlinearity": lambda x, y: x + LINEAR(x).relu(),
    "computed later": lambda x, y: (z := LINEAR(x), (e := y.exp()) + z, e * 2)[1:],
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name):
    assert layers(FOUND[name], X) == [True]


def test_an_input_of_no_other_use():
    assert layers(lambda x, y: y + LINEAR(x), X, X.clone()) == [True]


@pytest.mark.parametrize("batch_first", [True, False])
def test_after_the_module_for_attention(batch_first):
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    assert layers(lambda x: x + attention(x, x, x, need_weights=False)[0], X) == [False, True]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_not_found(name):
    assert layers(ELSEWHERE[name], X, X.clone()) == [False]
