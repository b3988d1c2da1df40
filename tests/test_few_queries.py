"""The pass that makes no keys and values which few queries meet: where it does, and where not. No
compile; the numbers of models with it are compared in test_unread_rows.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tracing import answered, recording, trace
from vit.attention import AttentivePool

ours = torch.ops.torch_max_backend
BATCH, LENGTH, WIDTH, HEADS = 2, 17, 32, 4


class Attention(nn.Module):
    """Of queries that are given, (B, L, D), to tokens (B, N, D)."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.keys = nn.Linear(WIDTH, WIDTH, bias)
        self.values = nn.Linear(WIDTH, WIDTH, bias)
        self.both = nn.Linear(WIDTH, 2 * WIDTH, bias)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        heads = map(self.heads, (query, key, value))
        return F.scaled_dot_product_attention(*heads, **options).transpose(1, 2).flatten(2)

    def layers(self, query: Tensor, x: Tensor, **options: Any) -> Tensor:
        return self.attend(query, self.keys(x), self.values(x), **options)

    def one_layer(self, query: Tensor, x: Tensor) -> Tensor:
        return self.attend(query, *self.both(x).chunk(2, -1))


ATTENTION = Attention().requires_grad_(False)
WITHOUT_BIAS = Attention(bias=False).requires_grad_(False)
MASK = torch.randn(1, LENGTH)
FOUND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "layers": ATTENTION.layers,
    "one layer": ATTENTION.one_layer,
    "without bias": WITHOUT_BIAS.layers,
    "a function of queries": lambda query, x: ATTENTION.layers(query.tanh(), x),
    "a function of tokens": lambda query, x: ATTENTION.one_layer(query, x.tanh()),
    "by another scale": lambda query, x: ATTENTION.layers(query, x, scale=0.1),
}
ELSEWHERE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "many queries": lambda query, x: ATTENTION.layers(x, x),
    "a mask": lambda query, x: ATTENTION.layers(query, x, attn_mask=MASK),
    "causal": lambda query, x: ATTENTION.layers(query, x, is_causal=True),
    "keys of others": lambda query, x: ATTENTION.attend(query, ATTENTION.keys(x), x),
    "keys of other tokens": lambda query, x: ATTENTION.attend(
        query, ATTENTION.keys(x), ATTENTION.values(x * 2)
    ),
    "keys of other rows": lambda query, x: ATTENTION.attend(
        query[:1], ATTENTION.keys(x[:1]), ATTENTION.values(x[1:])
    ),
    "keys that are returned": lambda query, x: (
        ATTENTION.attend(query, y := ATTENTION.keys(x), ATTENTION.values(x)),
        y,
    ),
    "keys through a function": lambda query, x: ATTENTION.attend(
        query, ATTENTION.keys(x).tanh(), ATTENTION.values(x)
    ),
    "no layer": lambda query, x: ATTENTION.attend(query, x, x * 2),
}


def attentions(gm: torch.fx.GraphModule) -> list[tuple[int, ...]]:
    """The sizes of their results."""
    nodes = gm.graph.find_nodes(op="call_function", target=ours.attention.default)
    return [tuple(node.meta["val"].shape) for node in nodes]


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("name", FOUND)
def test_queries_meet_the_tokens(name, queries):
    query, x = torch.randn(BATCH, queries, WIDTH), torch.randn(BATCH, LENGTH, WIDTH)
    gm, got = answered(FOUND[name], query, x)
    assert attentions(gm) == [(BATCH, 1, HEADS * queries, WIDTH)]
    torch.testing.assert_close(got, FOUND[name](query, x))


@pytest.mark.parametrize("name", ["layers", "one layer"])
def test_of_one_image(name):
    query, x = torch.randn(1, 1, WIDTH), torch.randn(1, LENGTH, WIDTH)
    gm, got = answered(FOUND[name], query, x)
    assert attentions(gm) == [(1, 1, HEADS, WIDTH)]
    torch.testing.assert_close(got, FOUND[name](query, x))


def test_of_any_number_of_images():
    query, x = torch.randn(BATCH, 1, WIDTH), torch.randn(BATCH, LENGTH, WIDTH)
    for tensor in (query, x):
        torch._dynamo.mark_dynamic(tensor, 0)
    gm, got = answered(ATTENTION.one_layer, query, x, dynamic=None)
    assert [sizes[1:] for sizes in attentions(gm)] == [(1, HEADS, WIDTH)]
    torch.testing.assert_close(got, ATTENTION.one_layer(query, x))


def test_the_pool_of_a_vit():
    pool = AttentivePool(WIDTH, HEADS).eval().requires_grad_(False)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    gm, got = answered(pool, x)
    assert attentions(gm) == [(BATCH, 1, HEADS, WIDTH)]
    torch.testing.assert_close(got, pool(x))


@pytest.mark.parametrize("why", ELSEWHERE)
def test_others_are_left_alone(why):
    query, x = torch.randn(BATCH, 1, WIDTH), torch.randn(BATCH, LENGTH, WIDTH)
    (sizes,) = attentions(trace(ELSEWHERE[why], query, x))
    assert sizes[1] == HEADS


def test_on_gpu_as_written():
    query, x = torch.randn(BATCH, 1, WIDTH), torch.randn(BATCH, LENGTH, WIDTH)
    (sizes,) = attentions(trace(ATTENTION.layers, query, x, on_gpu=True))
    assert sizes[1] == HEADS


def test_in_training_keys_and_values_are_kept_for_the_backward_pass():
    query = torch.randn(BATCH, 1, WIDTH)
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    graphs: list[torch.fx.GraphModule] = []
    torch._dynamo.reset()
    compiled = torch.compile(ATTENTION.layers, backend=recording(graphs), fullgraph=True)
    compiled(query, x).sum().backward()
    torch._dynamo.reset()
    (sizes,) = attentions(graphs[0])
    assert sizes[1] == HEADS
