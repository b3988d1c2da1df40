"""The whole model is one graph, whatever the options, sizes and masks; and it exports."""

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import aot_module_simplified

from vit import (
    AttentivePoolHeadConfig,
    HeadConfig,
    TransposedConv2dHeadConfig,
    UpsampleHeadConfig,
)
from vit.tokens import apply_mask, unapply_mask

POS_ENC = ["rope", "learnable", "fourier", "none"]
PREFIX = {"num_cls_tokens": 1, "num_register_tokens": 2}
GRIDS = {False: (32, 24), True: (8, 24, 16)}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def compiled():
    """Compiles to one graph and counts the graphs."""

    def compile_(module, **kw):
        counter = CompileCounterWithBackend("aot_eager")
        fn = torch.compile(module, backend=counter, fullgraph=True, **kw)
        return fn, counter

    return compile_


@pytest.fixture
def model(make_config, randomize):
    def make(**changes):
        config = make_config(**{"depth": 1, **PREFIX, **changes})
        return randomize(config.instantiate()).eval()

    return make


def assert_same(actual, expected, atol=1e-5, rtol=1e-4):
    assert repr(actual) == repr(expected)
    assert actual.tokenized_size == expected.tokenized_size
    torch.testing.assert_close(actual.dense_features, expected.dense_features, atol=atol, rtol=rtol)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "swiglu", "glu_limit": 1.0, "glu_extra_bias": 1.0, "layer_scale": 0.1},
        {"activation": "openswiglu", "qk_normalization": True, "patch_embed_normalization": True},
        {"activation": "geglu", "norm_type": "layernorm", "qk_normalization": True},
        {"activation": "gelu", "attention_bias": False, "mlp_bias": False, "depth": 2},
        {"activation": "silu", "num_cls_tokens": 0, "num_register_tokens": 0},
        {"activation": "relu", "pos_enc": "none", "depth": 0},
        {"activation": "reglu", "rope_normalize_coords": "max"},
    ],
    ids=lambda c: c["activation"],
)
@torch.no_grad()
def test_options(model, compiled, changes):
    m = model(**changes)
    fn, counter = compiled(m)
    x = torch.randn(2, 3, 32, 24)
    assert_same(fn(x), m(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("pos_enc", ["rope", "learnable", "fourier"])
@torch.no_grad()
def test_bfloat16(model, compiled, pos_enc):
    m = model(pos_enc=pos_enc, dtype=torch.bfloat16)
    x = torch.randn(2, 3, 32, 24, dtype=torch.bfloat16)
    assert_same(compiled(m)[0](x), m(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("volume", "pos_enc", "marked"),
    [(False, p, False) for p in POS_ENC]
    + [(False, "rope", True), (False, "learnable", True)]
    + [(True, "learnable", True), (True, "fourier", False)],
)
@torch.no_grad()
def test_one_graph_for_every_size(model, compiled, volume, pos_enc, marked):
    """mark_dynamic or dynamic=True; the size of the configuration is traced first."""
    m = model(volume=volume, pos_enc=pos_enc)
    fn, counter = compiled(m, dynamic=None if marked else True)
    size = GRIDS[volume]
    compiles = set()
    for batch, scale in ((2, 1), (3, 2), (5, 3)):
        x = torch.randn(batch, 3, *(scale * s for s in size))
        if marked:
            for dim in (0, *range(2, x.ndim)):
                torch._dynamo.mark_dynamic(x, dim)
        assert_same(fn(x), m(x))
        compiles.add(counter.frame_count)
    assert len(compiles) == 1  # none after the first call


@pytest.mark.parametrize("pos_enc", ["rope", "learnable"])
@torch.no_grad()
def test_mask_of_any_count(model, compiled, pos_enc):
    m = model(pos_enc=pos_enc)
    x = torch.randn(2, 3, 32, 24)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        fn, counter = compiled(m)
        for ratio in (0.5, 0.25, 0.75):
            mask = m.create_mask(x, ratio, 1)
            assert_same(fn(x, mask), m(x, mask))
    assert counter.frame_count == 1


@torch.no_grad()
def test_mask_with_every_size(model, compiled):
    m = model()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        fn, counter = compiled(m, dynamic=True)
        compiles = set()
        for batch, size in ((2, (32, 24)), (3, (40, 32)), (4, (64, 48))):
            x = torch.randn(batch, 3, *size)
            mask = m.create_mask(x, 0.5, 1)
            assert_same(fn(x, mask), m(x, mask))
            compiles.add(counter.frame_count)
    assert len(compiles) == 1


@torch.no_grad()
def test_mask_functions(compiled):
    x = torch.randn(3, 8, 4)
    mask = torch.stack([torch.randperm(8) < 3 for _ in range(3)])
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        kept = compiled(apply_mask)[0](mask, x)
    assert torch.equal(kept, apply_mask(mask, x))
    assert torch.equal(compiled(unapply_mask)[0](mask, kept), x * mask[..., None])
    filled = compiled(apply_mask)[0](mask, x, fill_value=2.0)
    assert torch.equal(filled, apply_mask(mask, x, fill_value=2.0))


@torch.no_grad()
def test_heads_in_the_graph(model, compiled):
    m = model(
        heads={
            "cls": HeadConfig(out_features=3),
            "pool": AttentivePoolHeadConfig(out_features=3, num_queries=2),
            "seg": TransposedConv2dHeadConfig(out_features=2),
            "up": UpsampleHeadConfig(out_features=2, num_upsample_stages=1),
        }
    )

    def run(x):
        cls, _, visual = features = m(x)
        grid = features.visual_tokens_as_grid.movedim(-1, 1)
        inputs = {"cls": cls, "pool": visual, "seg": grid, "up": grid}
        return {name: m.get_head(name)(value) for name, value in inputs.items()}

    x = torch.randn(2, 3, 32, 24)
    fn, counter = compiled(run)
    torch.testing.assert_close(fn(x), run(x), atol=1e-5, rtol=1e-4)
    assert counter.frame_count == 1


@torch.no_grad()
def test_attention_weights_in_the_graph(model, compiled):
    m = model(depth=2)
    x = torch.randn(2, 3, 32, 24)
    torch.testing.assert_close(
        compiled(m.forward_attention_weights)[0](x), m.forward_attention_weights(x)
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_step(model, compiled, checkpointing):
    # No dropout: the compiled step must give the gradients of the eager one.
    m = model(
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_checkpointing=checkpointing,
        layer_scale=0.5,
    ).train()
    x = torch.randn(2, 3, 32, 24)
    mask = m.create_mask(x, 0.5, 1)
    grads = []
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for fn in (m, compiled(m)[0]):
            m.zero_grad()
            fn(x, mask).dense_features.square().sum().backward()
            grads.append({n: p.grad.clone() for n, p in m.named_parameters() if p.requires_grad})
    torch.testing.assert_close(grads[1], grads[0], atol=1e-3, rtol=1e-3)


def test_training_with_every_augmentation(model, compiled):
    m = model(
        drop_path_rate=0.5, rope_shift_coords=0.1, rope_jitter_coords=1.1, rope_rescale_coords=1.1
    ).train()
    fn, counter = compiled(m)
    x = torch.randn(4, 3, 32, 24)
    a, b = fn(x).dense_features, fn(x).dense_features
    assert not torch.equal(a, b)
    (a + b).square().sum().backward()
    assert all(p.grad is not None for p in m.parameters() if p.requires_grad)
    assert counter.frame_count == 1


def graph_of(fn, *args):
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    def backend(gm, example_inputs):
        return aot_module_simplified(gm, example_inputs, fw_compiler=keep)

    torch.compile(fn, backend=backend, fullgraph=True)(*args)
    [graph] = graphs
    nested = [module for module in graph.modules() if isinstance(module, torch.fx.GraphModule)]
    return [str(n.target) for gm in nested for n in gm.graph.nodes if n.op == "call_function"]


@torch.no_grad()
def test_autocast(model, compiled):
    m = model()
    x = torch.randn(2, 3, 32, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(compiled(m)[0](x), m(x), atol=0.05, rtol=0.05)


@torch.no_grad()
def test_graph_is_lean(model):
    m = model(depth=3)
    ops = graph_of(m, torch.randn(2, 3, 32, 24))
    assert ops.count("invoke_subgraph") == 3  # the blocks share one graph
    assert ops.count("aten.addmm.default") == 4  # qkv, out, fc1, fc2
    assert sum("scaled_dot_product" in op for op in ops) == 1
    assert not {"aten.clone.default", "aten._to_copy.default", "aten.slice.Tensor"} & set(ops)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("pos_enc", ["rope", "learnable"])
@torch.no_grad()
def test_export(model, pos_enc, strict):
    m = model(pos_enc=pos_enc)
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        m,
        (torch.randn(2, 3, 32, 24),),
        dynamic_shapes={"x": {0: dynamic, 2: dynamic, 3: dynamic}},
        strict=strict,
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for shape in ((2, 3, 32, 24), (3, 3, 48, 40)):
        x = torch.randn(shape)
        assert_same(loaded(x), m(x))


@torch.no_grad()
def test_export_of_a_static_and_a_masked_model(model):
    m = model()
    x = torch.randn(2, 3, 32, 24)
    assert_same(torch.export.export(m, (x,)).module()(x), m(x))
    program = torch.export.export(m, (x, m.create_mask(x, 0.5, 1))).module()
    mask = m.create_mask(x, 0.25, 1)
    assert_same(program(x, mask), m(x, mask))
