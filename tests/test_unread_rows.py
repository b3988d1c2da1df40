"""The pass that drops rows which nothing reads: where it does, and where not; and the numbers of
models that go on with one token, compared with one compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import torch_max_backend
from benchmarks import cases as benchmark
from tests.harness import Case, comparison
from tests.models import images, model_case, randomised
from tests.tracing import answered, recording, trace
from torch_max_backend.aot import exporting
from vit import ViTConfig

aten = torch.ops.aten
ours = torch.ops.torch_max_backend
LAYERS = {
    aten.addmm.default,
    aten.mm.default,
    ours.gated_linear.default,
    ours.linear_activation.default,
}


def rows_of_layers(gm: GraphModule) -> list[int]:
    """How many rows each linear layer has."""
    return [node.meta["val"].shape[0] for node in gm.graph.nodes if node.target in LAYERS]


def queries(gm: GraphModule) -> list[int]:
    """How many queries, of all heads, each attention has that is no part of a block's kernel."""
    kinds = (ours.attention.default, ours.softmax_attention.default)
    shapes = [node.meta["val"].shape for node in gm.graph.nodes if node.target in kinds]
    return [shape[1] * shape[2] for shape in shapes]


BATCH, LENGTH, WIDTH = 2, 10, 8
LINEAR = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
POSITIONS = torch.randn(LENGTH, WIDTH)
FACTORS = torch.randn(LENGTH, 1)
MATRICES = torch.randn(BATCH, WIDTH, 3)
HIDDEN = torch.zeros(LENGTH, LENGTH).masked_fill(torch.ones(LENGTH, LENGTH).triu(3) > 0, -9.0)


ANGLES = torch.randn(LENGTH - 2, WIDTH)


def rotated(x: Tensor) -> Tensor:
    """All but the first two tokens."""
    return ours.rotary_embedding(LINEAR(x), ANGLES.sin(), ANGLES.cos(), 2)


def attended(x: Tensor, **options: Any) -> Tensor:
    """By one head, of x for the layer's result."""
    query = LINEAR(x).unsqueeze(1)
    return F.scaled_dot_product_attention(query, x[:, None], x[:, None], **options)[:, 0]


def written_attention(x: Tensor) -> Tensor:
    query, x = LINEAR(x)[:, None], x[:, None]
    return ((query @ x.mT * 0.5).softmax(-1) @ x)[:, 0]


READ = {
    "as it is": lambda x: LINEAR(x)[:, 0],
    "the last one": lambda x: LINEAR(x)[:, -1],
    "a slice": lambda x: LINEAR(x)[:, 3:4],
    "up to half of them": lambda x: LINEAR(x)[:, 2:7],
    "some apart": lambda x: ((y := LINEAR(x))[:, 1], y[:, 4]),
    "a slice of a slice": lambda x: LINEAR(x)[:, 2:7][:, 1:3],
    "a function": lambda x: (LINEAR(x).tanh() * 2).to(torch.float64)[:, 0],
    "a sum with positions": lambda x: (LINEAR(x) + POSITIONS)[:, 0],
    "a factor for each token": lambda x: (FACTORS * LINEAR(x))[:, 0],
    "a sum with the input": lambda x: (x + LINEAR(x))[:, 0],
    "layer after layer": lambda x: LINEAR(F.gelu(LINEAR(x)))[:, 0],
    "layer norm": lambda x: F.layer_norm(LINEAR(x), [WIDTH])[:, 0],
    "RMS norm": lambda x: F.rms_norm(LINEAR(x), [WIDTH])[:, 0],
    "softmax": lambda x: (LINEAR(x).softmax(-1) + LINEAR(x).log_softmax(-1))[:, 0],
    "a mean": lambda x: ((y := LINEAR(x)) - y.mean(-1, keepdim=True))[:, 0],
    "the largest": lambda x: ((y := LINEAR(x)) / y.abs().amax(-1, keepdim=True))[:, 0],
    "a transpose": lambda x: LINEAR(x).mT[..., 0],
    "heads": lambda x: LINEAR(x).unflatten(-1, (2, -1)).transpose(1, 2)[:, :, 0],
    "rows of all images": lambda x: LINEAR(x.flatten(0, 1)).unflatten(0, (BATCH, -1))[:, 0],
    "more axes": lambda x: LINEAR(x)[:, None].squeeze(1).unsqueeze(-1)[:, 0],
    "gates": lambda x: (lambda a, b: a * b.sigmoid())(*LINEAR(x).chunk(2, -1))[:, 0],
    "parts": lambda x: sum(LINEAR(x).unflatten(-1, (2, -1)).unbind(2))[:, 0],
    "before rotated ones": lambda x: rotated(x)[:, 1],
    "a rotated one": lambda x: rotated(x)[:, 5],
    "a concatenation": lambda x: torch.cat([LINEAR(x), x], -1)[:, 0],
    "a batched product": lambda x: torch.bmm(LINEAR(x), MATRICES)[:, 0],
    "attention": lambda x: attended(x)[:, 0],
    "attention with a mask": lambda x: attended(x, attn_mask=HIDDEN)[:, 4],
    "attention of the first": lambda x: attended(x, is_causal=True)[:, :2],
    "attention of the last": lambda x: attended(x, is_causal=True)[:, -1],
    "attention written out": lambda x: written_attention(x)[:, 0],
    "a softmax between products": lambda x: ((LINEAR(x) @ x.mT).softmax(-1) @ x)[:, 0],
}
ROWS = {
    "up to half of them": 5,
    "some apart": 4,
    "a slice of a slice": 2,
    "attention of the first": 2,
}


@pytest.mark.parametrize("name", READ)
def test_only_the_rows_that_are_read(name):
    x = torch.randn(BATCH, LENGTH, WIDTH)
    gm, got = answered(READ[name], x)
    assert set(rows_of_layers(gm)) == {BATCH * ROWS.get(name, 1)}
    torch.testing.assert_close(got, READ[name](x))


@pytest.mark.parametrize("name", ["layer after layer", "gates", "attention with a mask"])
def test_of_any_number_of_images(name):
    x = torch.randn(BATCH, LENGTH, WIDTH)
    torch._dynamo.mark_dynamic(x, 0)
    gm, got = answered(READ[name], x, dynamic=None)
    assert {str(rows) for rows in rows_of_layers(gm)} <= {"s77", "s33", "s27"}
    torch.testing.assert_close(got, READ[name](x))


ELSEWHERE: dict[str, Callable[..., Any]] = {
    "all of them": lambda x: LINEAR(x) * 2,
    "most of them": lambda x: LINEAR(x)[:, 1:],
    "all and one": lambda x: (y := LINEAR(x), y[:, 0]),
    "every second one": lambda x: LINEAR(x)[:, ::2],
    "one that only a run tells": lambda x: LINEAR(x).index_select(1, x[0, 0, :1].long().abs()),
    "their mean": lambda x: LINEAR(x).mean(1),
    "softmax among them": lambda x: LINEAR(x).softmax(1)[:, 0],
    "sums of them": lambda x: LINEAR(x).cumsum(1)[:, -1],
    "columns": lambda x: LINEAR(x)[..., 0],
    "rotated ones and others": lambda x: rotated(x)[:, 1:3],
    "keys": lambda x: F.scaled_dot_product_attention(x, LINEAR(x), x)[:, 0],
    "random numbers": lambda x: F.dropout(LINEAR(x), 0.5)[:, 0],
    "attention of later ones": lambda x: attended(x, is_causal=True)[:, 4],
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_others_are_left_alone(name):
    gm = trace(ELSEWHERE[name], torch.randn(BATCH, LENGTH, WIDTH))
    assert rows_of_layers(gm) == [BATCH * LENGTH]


def test_a_length_that_is_not_known():
    gm = trace(READ["as it is"], torch.randn(BATCH, LENGTH, WIDTH), dynamic=True)
    assert str(rows_of_layers(gm)[0]).count("s") == 2


def test_on_gpu_all_queries():
    gm = trace(READ["attention"], torch.randn(BATCH, LENGTH, WIDTH), on_gpu=True)
    assert rows_of_layers(gm) == [BATCH * LENGTH]


def test_in_training_those_that_the_backward_pass_reads_too():
    layer = nn.Linear(WIDTH, WIDTH)

    def first(x: Tensor) -> Tensor:
        return layer(layer(x).tanh())[:, 0]

    def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        x = torch.linspace(-1, 1, BATCH * LENGTH * WIDTH).view(BATCH, LENGTH, WIDTH)
        x.requires_grad_()
        function(x).square().sum().backward()
        assert x.grad is not None
        return x.grad

    graphs: list[GraphModule] = []
    torch._dynamo.reset()
    got = gradient(torch.compile(first, backend=recording(graphs), fullgraph=True))
    torch._dynamo.reset()
    assert rows_of_layers(graphs[0]) == [BATCH * LENGTH, BATCH]
    torch.testing.assert_close(got, gradient(first))


def test_a_part_of_a_weight_is_no_layer_of_all_of_it():
    """Such layers are what queries are separated to."""
    layer, x = nn.Linear(8, 12).requires_grad_(False), torch.randn(3, 8)

    def part(x: Tensor) -> Tensor:
        return F.gelu(F.linear(x, layer.weight[:4], layer.bias[:4]))

    _, got = answered(part, x)
    torch.testing.assert_close(got, part(x))


def one_token(**options: Any) -> nn.Module:
    """The class token of a ``vit`` of two blocks."""
    sizes: dict[str, Any] = {"in_channels": 3, "patch_size": [8, 8], "img_size": [32, 32]}
    sizes |= {"depth": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4}
    sizes |= {"dtype": torch.float32, "num_cls_tokens": 1}
    model = ViTConfig(**(sizes | options)).instantiate()
    return benchmark.Single(model, lambda features: features.cls_tokens[:, 0])


class Joined(nn.Module):
    """Attention as in timm: queries, keys and values on an axis of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(batch, length, width))


class Tokens(nn.Module):
    """Rows of patches behind a class token, through blocks, to the class token."""

    def __init__(self, blocks: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        rows = self.patches(x).flatten(2).mT
        return self.blocks(torch.cat([self.token.expand(len(x), -1, -1), rows], 1))[:, 0]


def torch_encoder() -> nn.Module:
    block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    return Tokens(nn.TransformerEncoder(block, 2, enable_nested_tensor=False))


def transformers_model(kind: str, result: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "image_size": 32, "patch_size": 8, **options}
    model = getattr(transformers, kind)
    return benchmark.Single(model(model.config_class(**config)), lambda output: output[result])


CLASSIFIER = "ViTForImageClassification"
MODELS: dict[str, Callable[[], nn.Module]] = {
    "rotary": one_token,
    "learnt-layernorm": lambda: one_token(pos_enc="learnable", norm_type="layernorm"),
    "gated-registers": lambda: one_token(activation="swiglu", num_register_tokens=2),
    "qknorm-layerscale": lambda: one_token(qk_normalization=True, layer_scale=0.1),
    "nobias": lambda: one_token(attention_bias=False, mlp_bias=False, pos_enc="none"),
    "timm": lambda: Tokens(nn.Sequential(Joined(32, 4), Joined(32, 4), nn.Linear(32, 5))),
    "torch": torch_encoder,
    "transformers": lambda: transformers_model(CLASSIFIER, "logits"),
    "written": lambda: transformers_model(CLASSIFIER, "logits", attn_implementation="eager"),
    "clip": lambda: transformers_model("CLIPVisionModel", "pooler_output"),
    "deit": lambda: transformers_model("DeiTForImageClassificationWithTeacher", "logits"),
}
TOKENS_READ = {"deit": 2}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_last_block_of_a_model(name, batch):
    """Its queries, and all after them, are of one token."""
    model, x = randomised(MODELS[name]()), images(batch, 32)
    gm, got = answered(model, x)
    tokens = TOKENS_READ.get(name, 1)
    assert queries(gm)[-1] == 4 * tokens
    assert set(rows_of_layers(gm)[-2:]) <= {batch * tokens, batch}
    with torch.no_grad():
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["rotary", "written", "clip"])
def test_of_an_exported_model(name, monkeypatch, tmp_path):
    """Without a mode for fake tensors around the passes."""
    compiled: list[GraphModule] = []
    monkeypatch.setattr(exporting, "compile_ahead", lambda gm, _: compiled.append(gm) or b"")
    model = randomised(MODELS[name]())
    torch_max_backend.export(model, (images(2, 32),), path=tmp_path / "a.max")
    assert queries(compiled[0])[-1] == 4


def test_separate_queries():
    """Where one layer makes queries, keys and values, queries get one of their own; keys and values
    are made, as keys are rotated."""
    model = randomised(one_token())
    gm, _ = answered(model, images(3, 32))
    sizes = [tuple(node.meta["val"].shape) for node in gm.graph.nodes if node.target in LAYERS]
    assert (3 * 17, 96) in sizes  # the first block
    assert sizes[-5:-2] == [(3 * 17, 64), (3, 32), (3, 32)]  # keys and values, queries, out


def test_int8():
    pytest.importorskip("torchao")
    case = benchmark.Case("vit-ti-classifier", 2, 32, benchmark.INT8)
    model = benchmark.in_precision(benchmark.make_model(case), case)
    gm, _ = answered(model, benchmark.images_in_precision(benchmark.make_input(case), case))
    products = gm.graph.find_nodes(op="call_function", target=aten._int_mm.default)
    assert [node.meta["val"].shape[0] for node in products[-4:]] == [2] * 4  # out, MLP, head


def cases() -> Iterator[Case]:
    """Few rows are multiplied by weights as they lie, 8 by the kernel of an MLP."""
    for i, (name, make) in enumerate(MODELS.items()):
        dtype = (torch.float32, torch.bfloat16)[i % 2]
        x = images((1, 8)[i // 2 % 2], 32)
        yield model_case(name, make(), x, results=lambda out: out, dtype=dtype, dynamic=False)
    for dtype in (torch.float32, torch.bfloat16):
        model = one_token(pos_enc="learnable", norm_type="layernorm")
        yield model_case(
            "any-batch",
            model,
            images(2, 32),
            results=lambda out: out,
            dtype=dtype,
            dynamic="batch",
            others=[[images(8, 32)]],
        )


test_models = comparison(list(cases()))
