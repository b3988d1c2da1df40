"""Quantisation of modules and models by torchao, and without it."""

import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from vit import ViT
from vit.attention import CrossAttention, SelfAttention
from vit.fused import NormLinear, NormMLP
from vit.transformer import TransformerDecoderLayer


@pytest.fixture
def fake_torchao(monkeypatch):
    """A torchao whose quantize_ marks the modules that it is given."""

    def quantize_(model, config, filter_fn=None):
        for name, module in model.named_modules():
            if filter_fn(module, name):
                assert not hasattr(module, "quantized")
                module.quantized = config

    package = types.ModuleType("torchao")
    package.quantization = types.ModuleType("torchao.quantization")
    package.quantization.quantize_ = quantize_
    monkeypatch.setitem(sys.modules, "torchao", package)
    monkeypatch.setitem(sys.modules, "torchao.quantization", package.quantization)


def quantized(module):
    return {n: m.quantized for n, m in module.named_modules() if hasattr(m, "quantized")}


def expected(depth=2):
    return {
        f"blocks.{i}.{name}": config
        for i in range(depth)
        for name, config in (
            ("mlp.fc1", "M"),
            ("mlp.fc2", "M"),
            ("self_attention.qkv_proj", "Q"),
            ("self_attention.out_proj", "A"),
        )
    }


def test_model(make_config, fake_torchao):
    m = make_config().instantiate()
    m.apply_quantization("M", "Q", "A")
    assert quantized(m) == expected()
    assert quantized(ViT(make_config(), "M", "Q", "A")) == expected()
    m = make_config().instantiate()
    m.apply_quantization(mlp_quantization_config="M")
    assert set(quantized(m).values()) == {"M"}
    assert quantized(ViT(make_config())) == {}


def test_modules(fake_torchao):
    assert quantized(NormLinear(4, 4, quantization_config="M")) == {"linear": "M"}
    assert quantized(NormMLP(4, 4, quantization_config="M")) == {"fc1": "M", "fc2": "M"}
    m = SelfAttention(4, 1, qkv_quantization_config="Q", out_quantization_config="A")
    assert quantized(m) == {"qkv_proj": "Q", "out_proj": "A"}
    m = CrossAttention(4, 1)
    m.apply_quantization("Q", "A")
    assert quantized(m) == {"q_proj": "Q", "kv_proj": "Q", "out_proj": "A"}
    layer = TransformerDecoderLayer(
        4,
        4,
        1,
        mlp_quantization_config="M",
        qkv_quantization_config="Q",
        attn_quantization_config="A",
    )
    assert len(quantized(layer)) == 7
    assert quantized(layer)["cross_attention.kv_proj"] == "Q"


def test_without_torchao(make_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    m = make_config().instantiate()
    m.apply_quantization(None, None, None)
    with pytest.raises(ImportError, match="pip install torchao"):
        m.apply_quantization("M", None, None)
    with pytest.raises(ImportError, match="pip install torchao"):
        ViT(make_config(), attn_quantization_config="A")


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
def test_int8_weights(make_config, randomize):
    from torchao.quantization import Int8WeightOnlyConfig

    m = randomize(make_config().instantiate()).eval()
    x = torch.randn(2, 3, 32, 24)
    before = m(x).dense_features
    m.apply_quantization(*[Int8WeightOnlyConfig()] * 3)
    for block in m.blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                assert type(module.weight) is not nn.Parameter
    after = m(x).dense_features
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, before, atol=0.05, rtol=0.05)
    m.backbone_requires_grad_(False)
    assert not any(p.requires_grad for p in m.parameters())


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
@torch.no_grad()
def test_a_block_quantised_after_the_first_compiled_call(make_config, randomize):
    """The blocks then differ, so that no longer one of them is traced for all."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    m = randomize(make_config().instantiate()).eval()
    x = torch.randn(2, 3, 32, 24)
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True)
    before = compiled(x).dense_features
    quantize_(m.blocks[-1], Int8WeightOnlyConfig())
    after = compiled(x).dense_features
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, m(x).dense_features)
