"""Heads: shapes, parameters, configurations, a model with one."""

import pytest
import torch
from torch import nn

from vit import (
    AttentivePoolHead,
    AttentivePoolHeadConfig,
    Head,
    HeadConfig,
    TransposedConv2dHead,
    TransposedConv2dHeadConfig,
    UpsampleHead,
    UpsampleHeadConfig,
    ViTConfig,
)
from vit.cli.with_head import WithHead


def test_head(randomize):
    m = randomize(Head(8, 5)).eval()
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(m(x), x @ m.proj.weight.T + m.proj.bias)
    assert m(x[0, 0]).shape == (5,)
    m.reset_parameters(bias=-4.0)
    assert (m.proj.bias == -4).all()
    assert 0 < m.proj.weight.abs().max() <= 0.04
    dropping = randomize(Head(8, 5, 0.5))
    assert not torch.allclose(dropping(x), dropping(x))
    assert list(m.state_dict()) == ["proj.weight", "proj.bias"]


@pytest.mark.parametrize("queries", [1, 3])
def test_attentive_pool_head(randomize, queries):
    m = randomize(AttentivePoolHead(8, 5, 2, queries)).eval()
    x = torch.randn(2, 6, 8)
    y = m(x)
    assert y.shape == ((2, 5) if queries == 1 else (2, queries, 5))
    torch.testing.assert_close(y, m.pool(x) @ m.proj.proj.weight.T + m.proj.proj.bias)
    assert m.forward_weights(x).shape == (2, 2, queries, 6)
    torch.testing.assert_close(m.forward_weights(x), m.pool.forward_weights(x))
    assert not hasattr(m, "reset_parameters")


@pytest.mark.parametrize(
    ("kw", "size"),
    [({}, (8, 6)), ({"stride": 4, "padding": 0, "output_padding": 1, "groups": 2}, (17, 13))],
)
def test_transposed_conv_head(randomize, kw, size):
    m = randomize(TransposedConv2dHead(8, 4, **kw)).eval()
    x = torch.randn(2, 8, 4, 3)
    assert m(x).shape == (2, 4, *size)
    assert (m.conv_transpose.kernel_size, m.conv_transpose.dilation) == ((4, 4), (1, 1))
    m.reset_parameters(bias=2.0)
    assert (m.conv_transpose.bias == 2).all()
    assert m(x).mean().item() == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(
    ("hidden", "stages", "channels"),
    [(None, 3, [8, 8, 8, 2]), (6, 3, [8, 6, 6, 2]), ([6, 4], 3, [8, 6, 4, 2]), ([], 1, [8, 2])],
)
@pytest.mark.parametrize("smooth", [0, 1, 2])
def test_upsample_head(randomize, hidden, stages, channels, smooth):
    m = randomize(UpsampleHead(8, 2, hidden, stages, smooth)).eval()
    assert [u.in_channels for u in m.upsample_layers] == channels[:-1]
    assert [u.out_channels for u in m.upsample_layers] == channels[1:]
    x = torch.randn(2, 8, 3, 4)
    expected = x
    for i, up in enumerate(m.upsample_layers):
        expected = up(expected)
        convs = [layer for layer in m.smooth_layers[i] if isinstance(layer, nn.Conv2d)]
        assert len(convs) == smooth
        branch = expected
        for j, conv in enumerate(convs):
            branch = conv(branch)
            if (i, j) != (stages - 1, smooth - 1):
                branch = nn.functional.gelu(branch)
        expected = expected + branch if convs else expected
    assert m(x).shape == (2, 2, 3 * 2**stages, 4 * 2**stages)
    torch.testing.assert_close(m(x), expected)


def test_upsample_head_keys_and_bias():
    m = UpsampleHead(8, 2, num_upsample_stages=2)
    layers = ["upsample_layers.0", "upsample_layers.1"]
    layers += [f"smooth_layers.{i}.{j}" for i in range(2) for j in (0, 2)]
    assert list(m.state_dict()) == [f"{n}.{k}" for n in layers for k in ("weight", "bias")]
    m.reset_parameters(bias=-3.0)
    assert (m.smooth_layers[1][2].bias == -3).all()
    assert m(torch.randn(1, 8, 4, 4)).mean().item() == pytest.approx(-3, abs=0.1)


def test_upsample_head_errors():
    with pytest.raises(ValueError, match="has 2 elements but 4 upsample stages require 3"):
        UpsampleHead(8, 2, [4, 4])
    with pytest.raises(ValueError, match="has 4 elements but 4 upsample stages only need 3"):
        UpsampleHead(8, 2, [4, 4, 4, 4])
    with pytest.raises(ValueError, match="num_upsample_stages"):
        UpsampleHead(8, 2, num_upsample_stages=0)
    with pytest.raises(ValueError, match="num_smooth_layers"):
        UpsampleHead(8, 2, num_smooth_layers=-1)


def test_config_sizes_default_to_the_backbone(make_config):
    c = make_config(attention_bias=False, norm_type="layernorm", qk_normalization=True)
    head = HeadConfig().instantiate(c)
    assert head.proj.weight.shape == (32, 32)
    pool = AttentivePoolHeadConfig(out_features=5).instantiate(c)
    assert pool.pool.cross_attention.num_attention_heads == 2
    assert pool.pool.cross_attention.out_proj.bias is None
    assert isinstance(pool.pool.cross_attention.q_norm, nn.LayerNorm)
    assert pool.proj.proj.weight.shape == (5, 32)
    conv = TransposedConv2dHeadConfig(out_features=4).instantiate(c)
    assert conv.conv_transpose.weight.shape == (32, 4, 4, 4)
    up = UpsampleHeadConfig(out_features=4, num_upsample_stages=2).instantiate(c)
    assert up.upsample_layers[0].out_channels == 32


def test_config_values_reach_the_module(make_config):
    c = make_config()
    head = HeadConfig(5, 6, 0.5).instantiate(c)
    assert (head.proj.in_features, head.proj.out_features, head.dropout.p) == (5, 6, 0.5)
    pool = AttentivePoolHeadConfig(8, 6, 4, 3, 0.1, 0.2, 0.3).instantiate(c)
    attention = pool.pool.cross_attention
    assert attention.num_attention_heads == 4
    assert (attention.dropout.p, attention.attention_dropout.p, pool.proj.dropout.p) == (
        0.1,
        0.2,
        0.3,
    )
    assert pool.pool.query.shape == (1, 3, 8)
    conv = TransposedConv2dHeadConfig(8, 4, 3, 2, 1, 1, 2, 4, 0.5).instantiate(c)
    t = conv.conv_transpose
    assert (t.kernel_size, t.stride, t.padding, t.output_padding, t.dilation, t.groups) == (
        (3, 3),
        (2, 2),
        (1, 1),
        (1, 1),
        (2, 2),
        4,
    )
    up = UpsampleHeadConfig(8, 2, [6], 2, 1, 0.5).instantiate(c)
    assert (up.upsample_layers[0].out_channels, len(up.smooth_layers[0]), up.dropout.p) == (
        6,
        2,
        0.5,
    )


@pytest.mark.parametrize(
    "config",
    [
        HeadConfig(),
        AttentivePoolHeadConfig(),
        TransposedConv2dHeadConfig(),
        UpsampleHeadConfig(num_upsample_stages=1),
    ],
)
def test_device_and_dtype(make_config, config):
    m = config.instantiate(make_config(dtype=torch.bfloat16), device="meta")
    assert {(p.dtype, p.device.type) for p in m.parameters()} == {(torch.bfloat16, "meta")}
    m = config.instantiate(make_config(), dtype=torch.float64)
    assert {p.dtype for p in m.parameters()} == {torch.float64}


@pytest.mark.parametrize("cls_tokens", [0, 2])
@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (HeadConfig(out_features=5), (2, 5)),
        (AttentivePoolHeadConfig(out_features=6), (2, 6)),
        (TransposedConv2dHeadConfig(out_features=3), (2, 3, 8, 6)),
    ],
)
def test_a_model_with_its_head(head, shape, cls_tokens):
    config = ViTConfig(
        *(3, [8, 8], [32, 24], 1, 32, 48, 2),
        dtype=torch.float32,
        num_cls_tokens=cls_tokens,
        heads={"made": head},
    )
    model = config.instantiate().eval()
    x = torch.randn(2, 3, 32, 24)
    assert WithHead(model, "made")(x).shape == shape
    if shape == (2, 5):
        features = model(x)
        token = features.cls_tokens[:, 0] if cls_tokens else features.visual_tokens.mean(1)
        torch.testing.assert_close(WithHead(model, "made")(x), model.get_head("made")(token))
    with pytest.raises(KeyError, match="No head named 'tail'"):
        WithHead(model, "tail")
