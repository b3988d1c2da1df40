"""The halves of a transformer's block as one kernel each: their numbers, compared with one compile,
and where the passes find them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor, nn

from tests.harness import Case, comparison, grouped, module_case, randn, short
from tests.tracing import aot_backend, trace
from torch_max_backend.options import MaxOptions
from torch_max_backend.passes import run_passes
from vit import ViT, ViTConfig
from vit.rope import apply_rope

ours = torch.ops.torch_max_backend
DTYPES = (torch.float32, torch.bfloat16)


class MLP(nn.Module):
    def __init__(
        self,
        width: int,
        hidden: int,
        norm: Callable[..., nn.Module] = nn.LayerNorm,
        activation: nn.Module | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.norm = norm(width)
        self.up = nn.Linear(width, hidden)
        self.activation = activation or nn.GELU()
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(0.1)
        self.gain = nn.Parameter(torch.randn(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.down(self.activation(self.up(self.norm(x)))))
        return x + (y if self.gain is None else self.gain * y)


class SelfAttention(nn.Module):
    def __init__(
        self,
        width: int,
        heads: int,
        joined: bool,
        norm: Callable[..., nn.Module] = nn.LayerNorm,
        causal: bool = False,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.norm = norm(width)
        widths = [3 * width] if joined else [width] * 3
        self.projections = nn.ModuleList(nn.Linear(width, n) for n in widths)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        self.gain = nn.Parameter(torch.randn(width)) if scaled else None

    def forward(self, x: Tensor, *rope: Tensor) -> Tensor:
        y = self.norm(x)
        parts = [layer(y) for layer in self.projections]
        parts = parts[0].chunk(3, -1) if len(parts) == 1 else parts
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if rope:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        y = self.dropout(self.out(heads.transpose(1, 2).flatten(2)))
        return x + (y if self.gain is None else y * self.gain)


# ----------------------------------------------------------------------------------- numbers


def mlps() -> Iterator[Case]:
    """Odd widths, less than a panel and several, rows that workers share, fewer than a tile."""
    torch.manual_seed(0)
    plain = partial(nn.LayerNorm, elementwise_affine=False)
    for dtype in DTYPES:
        for frozen in (False, True):
            name = f"{short(dtype)}-{'frozen' if frozen else 'not'}"
            table = [
                ("gelu", MLP(192, 768), (2, 197, 192)),
                ("silu", MLP(33, 70, nn.RMSNorm, nn.SiLU(), scaled=True), (3, 7, 33)),
                ("tanh", MLP(70, 33, plain, nn.GELU("tanh")), (101, 70)),
                ("long", MLP(64, 1101, scaled=True), (1, 9, 64)),
            ]
            for kind, module, shape in table:
                x = randn(*shape, dtype=dtype)
                yield module_case(f"mlp-{kind}-{name}", module, x, frozen=frozen)
            rows = (1, 2, 5, 6, 97, 400)
            yield module_case(
                f"mlp-rows-{name}",
                MLP(40, 130),
                randn(50, 40, dtype=dtype),
                dynamic="generic",
                others=[(randn(m, 40, dtype=dtype),) for m in rows],
                frozen=frozen,
            )


def attentions() -> Iterator[Case]:
    torch.manual_seed(0)
    for dtype in DTYPES:
        for frozen in (False, True):
            name = f"{short(dtype)}-{'frozen' if frozen else 'not'}"
            table = [
                ("joined", SelfAttention(192, 3, True), (2, 197, 192)),
                ("apart", SelfAttention(128, 4, False, scaled=True), (3, 7, 128)),
                ("causal", SelfAttention(64, 2, True, nn.RMSNorm, causal=True), (1, 50, 64)),
            ]
            for kind, module, shape in table:
                x = randn(*shape, dtype=dtype)
                yield module_case(f"attention-{kind}-{name}", module, x, frozen=frozen)
            for joined in (False, True):
                rope = randn(2, 17, 32).sin().to(dtype)  # of the last 17 tokens
                module = SelfAttention(128, 4, joined, scaled=True)
                x = randn(2, 20, 128, dtype=dtype)
                yield module_case(
                    f"attention-rotary-{joined}-{name}", module, x, rope, frozen=frozen
                )
                sizes = ((1, 1), (3, 5), (1, 90))
                yield module_case(
                    f"attention-dynamic-{joined}-{name}",
                    SelfAttention(64, 1, joined),
                    randn(2, 13, 64, dtype=dtype),
                    dynamic="generic",
                    others=[(randn(*size, 64, dtype=dtype),) for size in sizes],
                    frozen=frozen,
                )


CASES = [*mlps(), *attentions()]
test_numbers = comparison(grouped(CASES, 8))

# ------------------------------------------------------------------------------------ graphs


def found(function: Callable[..., Any], *args: Any, **settings: Any) -> list[int]:
    """How many of the kernels for attention and for an MLP the graph has."""
    graph = trace(function, *args, **settings).graph
    targets = (ours.self_attention.default, ours.mlp.default)
    return [len(graph.find_nodes(op="call_function", target=target)) for target in targets]


@pytest.mark.parametrize("case", [case for case in CASES if not case.frozen], ids=lambda c: c.id)
def test_every_one_whose_numbers_are_compared(case):
    expected = [1, 0] if case.id.startswith("attention") else [0, 1]
    assert found(case.function, *case.inputs, dynamic=bool(case.dynamic)) == expected


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", ["rope", "learnable"])
def test_every_block_of_a_vit(dtype, dynamic, positions):
    config = ViTConfig(
        3, [4, 4], [8, 8], 3, 64, 96, 2, dtype=dtype, activation="gelu", pos_enc=positions
    )
    images = torch.randn(2, 3, 8, 8, dtype=dtype)
    assert found(ViT(config).eval(), images, dynamic=dynamic) == [3, 3]
    composed = MaxOptions(attention="composed")
    assert found(ViT(config).eval(), images, dynamic=dynamic, settings=composed) == [0, 3]


def test_the_default_vit():
    config = ViTConfig(3, [4, 4], [8, 8], 2, 64, 96, 2, dtype=torch.float32)
    assert found(ViT(config).eval(), torch.randn(2, 3, 8, 8)) == [2, 2]


MODELS = {"ViT": "ViTModel ViTConfig", "DINOv2": "Dinov2Model Dinov2Config"}


@pytest.mark.parametrize("name", MODELS)
def test_every_block_of_models_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    model, config = (getattr(transformers, part) for part in MODELS[name].split())
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vit = model(config(**sizes, image_size=8, patch_size=4)).eval()
    images = torch.randn(2, 3, 8, 8)
    assert found(lambda x: vit(x).last_hidden_state, images) == [2, 2]


def test_modules_of_torch_that_normalise_first():
    layer = nn.TransformerEncoderLayer(
        64, 2, 96, activation="gelu", norm_first=True, batch_first=True
    )
    assert found(layer.eval(), torch.randn(2, 9, 64)) == [1, 1]


MODULES = {
    "MLP": lambda: MLP(64, 96, nn.RMSNorm, nn.SiLU(), scaled=True),
    "attention": lambda: SelfAttention(64, 2, False, causal=True),
    "joined": lambda: SelfAttention(64, 2, True, nn.RMSNorm, scaled=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_eager_answer_of_background_mode_is_the_same(name):
    module, x = MODULES[name]().eval(), torch.randn(2, 9, 64)
    rope = [] if name == "MLP" else [torch.randn(2, 9, 32).sin()]

    def run(gm, example_inputs):
        run_passes(gm)
        targets = {node.target for node in gm.graph.nodes}
        assert targets & {ours.self_attention.default, ours.mlp.default}
        return make_boxed_func(gm.forward)

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(module, backend=aot_backend(run))
        torch.testing.assert_close(compiled(x, *rope), module(x, *rope))


NORM, OTHER_NORM, ACROSS = nn.LayerNorm(64), nn.LayerNorm(64), nn.LayerNorm((9, 64))
UP, DOWN = nn.Linear(64, 96), nn.Linear(96, 64)
BROAD_UP, BROAD_DOWN, BROADER_DOWN = nn.Linear(128, 96), nn.Linear(96, 128), nn.Linear(192, 128)
QUERY, KEY, VALUE, OUT = (nn.Linear(64, 64) for _ in range(4))


def perceptron(x):
    return DOWN(F.gelu(UP(x)))


NO_MLP = {
    "no norm": lambda x: x + perceptron(x),
    "no residual connection": lambda x: perceptron(NORM(x)),
    "another residual connection": lambda x: x * 2 + perceptron(NORM(x)),
    "of what is normalised": lambda x: (y := NORM(x)) + perceptron(y),
    "normalised after": lambda x: NORM(x + perceptron(x)),
    "the norm is used again": lambda x: (x + perceptron(y := NORM(x)), y),
    "the branch is used again": lambda x: (x + (y := perceptron(NORM(x))), y),
    "the activation is used again": lambda x: (
        x + DOWN(y := F.gelu(UP(NORM(x)))),
        y,
    ),
    "a norm of several axes": lambda x: x + perceptron(ACROSS(x)),
    "a norm of another width": lambda x: (
        x + perceptron(F.layer_norm(x.unflatten(-1, (2, 32)), (32,)).flatten(2))
    ),
    "another activation": lambda x: x + DOWN(F.relu(UP(NORM(x)))),
    "no bias": lambda x: x + F.linear(F.gelu(UP(NORM(x))), DOWN.weight),
    "subtracted": lambda x: x - perceptron(NORM(x)),
    "weighted": lambda x: torch.add(x, perceptron(NORM(x)), alpha=2),
    "scaled by row": lambda x: x + x[..., :1] * perceptron(NORM(x)),
    "rows of another width are read": lambda x: (
        x + BROAD_DOWN(F.gelu(BROAD_UP(NORM(x).reshape(1, 9, 128)))).reshape(2, 9, 64)
    ),
    "activations of another width are read": lambda x: (
        x + BROADER_DOWN(F.gelu(UP(NORM(x))).reshape(1, 9, 192)).reshape(2, 9, 64)
    ),
    "broadcast": lambda x: x[:1] + perceptron(NORM(x)),
    "few rows": lambda x: (y := x[0, :5]) + perceptron(NORM(y)),
    "a number is added": lambda x: x + (NORM(x).shape[0] + 1),
}


@pytest.mark.parametrize("why", NO_MLP)
def test_what_is_no_such_mlp(why):
    assert found(NO_MLP[why], torch.randn(2, 9, 64)) == [0, 0]


def heads(x, count=2):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(q, k, v, **keywords):
    out = F.scaled_dot_product_attention(q, k, v, **keywords)
    return OUT(out.transpose(1, 2).flatten(2))


def projected(x, norm=NORM):
    y = norm(x)
    return heads(QUERY(y)), heads(KEY(y)), heads(VALUE(y))


ROPE = torch.randn(2, 9, 32)
NARROW = [nn.Linear(32, 32) for _ in range(3)]


def of_joined(order, columns=64):
    norm, layer = nn.LayerNorm(columns), nn.Linear(columns, 3 * columns)
    out = nn.Linear(columns, columns)

    def function(x):
        x = x[..., :columns]
        parts = layer(norm(x)).chunk(3, -1)
        y = F.scaled_dot_product_attention(*(heads(parts[i]) for i in order))
        return x.contiguous() + out(y.transpose(1, 2).flatten(2)), x

    return function


NO_ATTENTION = {
    "a mask": lambda x: x + attend(*projected(x), attn_mask=x.new_ones(9, 9, dtype=torch.bool)),
    "no residual connection": lambda x: attend(*projected(x)),
    "another residual connection": lambda x: x * 2 + attend(*projected(x)),
    "of what is normalised": lambda x: NORM(x) + attend(*projected(x)),
    "heads side by side in another order": lambda x: (
        x + OUT(F.scaled_dot_product_attention(*projected(x)).reshape(2, 9, 64))
    ),
    "keys of another norm": lambda x: (
        x + attend(heads(QUERY(NORM(x))), heads(KEY(z := OTHER_NORM(x))), heads(VALUE(z)))
    ),
    "keys of something else": lambda x: (
        x + attend(heads(QUERY(NORM(x))), heads(KEY(x)), heads(VALUE(x)))
    ),
    "keys are values": lambda x: x + attend(heads(QUERY(y := NORM(x))), k := heads(KEY(y)), k),
    "values are used again": lambda x: ((p := projected(x)), x + attend(*p), p[2].exp())[1:],
    "the norm is used again": lambda x: (
        x + attend(*projected(y := NORM(x), nn.Identity())),
        y.exp(),
    ),
    "normalised queries": lambda x: (
        (p := projected(x)),
        x + attend(F.layer_norm(p[0], (32,)), *p[1:]),
    )[1],
    "rotated queries alone": lambda x: (
        (p := projected(x)),
        x + attend(apply_rope(p[0], ROPE), *p[1:]),
    )[1],
    "rotated by other angles": lambda x: (
        (p := projected(x)),
        x + attend(apply_rope(p[0], ROPE), apply_rope(p[1], ROPE.flip(0)), p[2]),
    )[1],
    "fewer keys": lambda x: (
        (p := projected(x)),
        x + attend(p[0], p[1][:, :, :5], p[2][:, :, :5]),
    )[1],
    "rows of another width are read": lambda x: (
        (y := NORM(x).reshape(4, 9, 32)),
        x + attend(*(heads(layer(y).reshape(2, 9, 64)) for layer in NARROW)),
    )[1],
    "joined in another order": of_joined([1, 0, 2]),
    "not a multiple of a panel": of_joined([0, 1, 2], columns=48),
}


@pytest.mark.parametrize("why", NO_ATTENTION)
def test_what_is_no_such_attention(why):
    graphs = trace(NO_ATTENTION[why], torch.randn(2, 9, 64)).graph
    assert not graphs.find_nodes(op="call_function", target=ours.self_attention.default)
    assert graphs.find_nodes(op="call_function", target=ours.attention.default)


def test_a_joined_layer_of_the_right_order():
    assert found(of_joined([0, 1, 2]), torch.randn(2, 9, 64)) == [1, 0]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_left_alone(name, dtype):
    module = MODULES[name]().to(dtype).eval()
    assert found(module, torch.randn(2, 9, 64, dtype=dtype)) == [0, 0]


def test_layers_that_are_trained_are_left_alone():
    graphs = []

    def keep(gm, example_inputs):
        run_passes(gm)
        graphs.append(gm)
        return make_boxed_func(gm.forward)

    torch._dynamo.reset()
    torch.compile(MLP(64, 96), backend=aot_backend(keep))(torch.randn(2, 9, 64))
    assert graphs[0].graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default)
    assert not graphs[0].graph.find_nodes(op="call_function", target=ours.mlp.default)
