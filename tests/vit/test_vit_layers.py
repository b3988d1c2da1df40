"""MLPs, norms, transformer layers, stochastic depth, initial weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit import initialization
from vit.drop_path import DropPath, drop_path
from vit.fused import NormLinear, NormMLP
from vit.helpers import OpenSwiGLU, SRelu, get_activation, get_activation_module
from vit.layer_scale import LayerScale
from vit.norm import NORM_TYPE_CHOICES, apply_norm, get_norm_bias, is_layer_norm, make_norm
from vit.rope import RopePositionEmbedding
from vit.transformer import (
    CrossAttentionTransformer,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    _select_residual_subset,
)

B, L, D, FF = 3, 5, 32, 48

FORMULAS = {
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x / (1 + (-x).exp()),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "srelu": lambda x: x.clamp(min=0) ** 2,
    "openswiglu": lambda x: x / (1 + (-1.702 * x).exp()),
}
GATES = {"reglu": "relu", "swiglu": "silu", "geglu": "gelu", "openswiglu": "openswiglu"}


@pytest.mark.parametrize("name", FORMULAS)
def test_activations(name):
    x = torch.randn(100) * 3
    torch.testing.assert_close(get_activation(name)(x), FORMULAS[name](x))
    torch.testing.assert_close(get_activation_module(name)(x), FORMULAS[name](x))


@pytest.mark.parametrize("name", GATES)
def test_activation_of_a_glu_is_its_gate(name):
    x = torch.randn(100) * 3
    torch.testing.assert_close(get_activation(name)(x), FORMULAS[GATES[name]](x))


def test_unknown_activations():
    for get in (get_activation, get_activation_module):
        with pytest.raises(ValueError, match="tanh"):
            get("tanh")
    with pytest.raises(ValueError, match="swiglu"):
        get_activation_module("swiglu")
    assert isinstance(get_activation_module("srelu"), SRelu)
    x = torch.randn(10)
    torch.testing.assert_close(OpenSwiGLU(alpha=2.0)(x), x * torch.sigmoid(2 * x))


@pytest.mark.parametrize("norm_type", NORM_TYPE_CHOICES)
def test_norms(norm_type, randomize):
    norm = randomize(make_norm(D, norm_type, 1e-3))
    x = torch.randn(B, L, D) * 2 + 1
    bias = get_norm_bias(norm)
    centred = x - x.mean(-1, keepdim=True) if norm_type == "layernorm" else x
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    expected = expected if bias is None else expected + bias
    assert (bias is not None) == is_layer_norm(norm) == (norm_type == "layernorm")
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-4)
    y = apply_norm(x, norm.weight, bias, 1e-3, use_layer_norm=is_layer_norm(norm))
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)


def test_make_norm_defaults():
    assert make_norm(4, "rmsnorm").eps is None
    assert make_norm(4, "layernorm").eps == 1e-5
    assert make_norm(4, "rmsnorm", dtype=torch.bfloat16, device="meta").weight.is_meta
    with pytest.raises(ValueError, match="Unsupported norm_type: x"):
        make_norm(4, "x")


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "srelu"])
def test_mlp(activation, randomize):
    m = randomize(NormMLP(D, FF, activation=activation)).eval()
    assert m.fc1.weight.shape == (FF, D)
    x = torch.randn(B, L, D)
    hidden = FORMULAS[activation](m.fc1(m.norm(x)))
    torch.testing.assert_close(m(x), m.fc2(hidden), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize(("limit", "extra"), [(None, None), (0.5, None), (None, 1.0), (0.5, 1.0)])
def test_gated_mlp(activation, limit, extra, randomize):
    m = NormMLP(D, FF, activation=activation, limit=limit, extra_bias=extra, norm_type="layernorm")
    randomize(m).eval()
    assert m.fc1.weight.shape == (2 * FF, D)
    x = torch.randn(B, L, D)
    hidden = m.fc1(m.norm(x))
    linear, gate = hidden[..., :FF], hidden[..., FF:]
    if limit is not None:
        assert linear.abs().max() > limit
        linear, gate = linear.clamp(-limit, limit), torch.minimum(gate, torch.tensor(limit))
    expected = FORMULAS[GATES[activation]](gate) * (linear + (extra or 0.0))
    torch.testing.assert_close(m(x), m.fc2(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_mlp_of_rank_1(activation, randomize):
    m = randomize(NormMLP(D, FF, activation=activation)).eval()
    x = torch.randn(D)
    assert m(x).shape == (D,)
    torch.testing.assert_close(m(x), m(x[None, None])[0, 0])


def test_mlp_options():
    m = NormMLP(D, FF, bias=False, dropout=0.5)
    assert m.fc1.bias is None
    assert m.fc2.bias is None
    x = torch.randn(B, L, D)
    assert not torch.allclose(m(x), m(x))
    with pytest.raises(ValueError, match="Unsupported activation: tanhglu"):
        NormMLP(D, FF, activation="tanhglu")
    assert NormMLP(D, FF, eps=None).norm.eps == 1e-5


def test_norm_linear(randomize):
    m = randomize(NormLinear(D, 7, norm_type="layernorm")).eval()
    x = torch.randn(B, D)
    normed = F.layer_norm(x, (D,), m.norm.weight, m.norm.bias, 1e-5)
    torch.testing.assert_close(m(x), normed @ m.linear.weight.T + m.linear.bias)
    dropping = randomize(NormLinear(D, 7, bias=False, dropout=0.5))
    assert not torch.allclose(dropping(x), dropping(x))


LAYERS = [TransformerEncoderLayer, TransformerDecoderLayer, CrossAttentionTransformer]


def call(layer, x, kv, **kw):
    return layer(x, **kw) if isinstance(layer, TransformerEncoderLayer) else layer(x, kv, **kw)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", [{}, {"layer_scale": 0.1, "drop_path_rate": 0.5}])
def test_fresh_layer_is_the_identity(kind, options):
    layer = kind(D, FF, 2, **options)
    x, kv = torch.randn(B, L, D), torch.randn(B, 4, D)
    for mode in (True, False):
        torch.testing.assert_close(call(layer.train(mode), x, kv), x, atol=0, rtol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_reset_restores_the_identity(kind, randomize):
    layer = randomize(kind(D, FF, 2, layer_scale=0.1)).eval()
    x, kv = torch.randn(B, L, D), torch.randn(B, 4, D)
    assert not torch.allclose(call(layer, x, kv), x)
    layer.reset_parameters()
    torch.testing.assert_close(call(layer, x, kv), x, atol=0, rtol=0)
    assert (layer.layer_scale_mlp.gamma == 0.1).all()
    assert layer.mlp.fc1.weight.abs().max() > 0


def test_encoder_layer_is_its_branches(randomize):
    layer = randomize(TransformerEncoderLayer(D, FF, 2, layer_scale=0.3)).eval()
    x = torch.randn(B, L, D)
    rope = RopePositionEmbedding(D, num_heads=2)(H=1, W=L)
    y = x + layer.self_attention(x, rope=rope) * layer.layer_scale_attn.gamma
    y = y + layer.mlp(y) * layer.layer_scale_mlp.gamma
    torch.testing.assert_close(layer(x, rope), y)
    assert isinstance(TransformerEncoderLayer(D, FF, 2).layer_scale_mlp, nn.Identity)


def test_decoder_layer_is_its_branches(randomize):
    layer = randomize(TransformerDecoderLayer(D, FF, 2)).eval()
    cross = randomize(CrossAttentionTransformer(D, FF, 2)).eval()
    x, kv = torch.randn(B, L, D), torch.randn(B, 4, D)
    rope_q = RopePositionEmbedding(D, num_heads=2)(H=1, W=L)
    rope_k = RopePositionEmbedding(D, num_heads=2)(H=2, W=2)
    y = x + layer.self_attention(x, rope=rope_q)
    y = y + layer.cross_attention(y, kv, rope_q=rope_q, rope_k=rope_k)
    torch.testing.assert_close(layer(x, kv, rope_q, rope_k), y + layer.mlp(y))
    y = x + cross.cross_attention(x, kv, rope_q=rope_q, rope_k=rope_k)
    torch.testing.assert_close(cross(x, kv, rope_q, rope_k), y + cross.mlp(y))
    assert not hasattr(cross, "self_attention")


def test_select_residual_subset():
    x = torch.randn(10, 2, 3)
    for rate, training, batch in ((0.0, True, 10), (0.5, False, 10), (0.5, True, 1)):
        sub, keep, scale = _select_residual_subset(x[:batch], rate, training)
        assert keep is None
        assert scale == 1.0
        assert sub.shape[0] == batch
    for rate, kept in ((0.3, 7), (0.25, 7), (0.99, 1)):
        sub, keep, scale = _select_residual_subset(x, rate, True)
        assert len(keep) == len(set(keep.tolist())) == kept
        assert scale == 10 / kept
        torch.testing.assert_close(sub, x[keep], atol=0, rtol=0)


def test_stochastic_depth_runs_the_branch_on_some_samples(randomize):
    layer = randomize(TransformerEncoderLayer(D, FF, 2, 0.0, 0.0, drop_path_rate=0.5))
    sizes = []
    layer.mlp.register_forward_hook(lambda m, args, out: sizes.append(args[0].shape[0]))
    x = torch.randn(8, L, D)
    layer(x)
    layer.eval()(x)
    assert sizes == [4, 8]


def test_stochastic_depth_keeps_the_expectation(randomize):
    layer = randomize(CrossAttentionTransformer(D, FF, 2, 0.0, 0.0, drop_path_rate=0.4))
    # Without the MLP: its input depends on the draw before it.
    layer._mlp = lambda x: x
    x, kv = torch.randn(5, 2, D), torch.randn(5, 3, D)
    mean = torch.stack([layer(x, kv) for _ in range(1500)]).mean(0)
    expected = layer.eval()(x, kv)
    assert (expected - x).abs().max() > 0.3
    torch.testing.assert_close(mean, expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("shared_kv", [False, True])
def test_stochastic_depth_pairs_samples_with_rope_and_kv(randomize, shared_kv, monkeypatch):
    layer = randomize(TransformerDecoderLayer(D, FF, 2, 0.0, 0.0, drop_path_rate=0.5))
    x, kv = torch.randn(4, L, D), torch.randn(1 if shared_kv else 4, L, D)
    angles = torch.rand(4, 1, L, 16) * 6
    rope = torch.stack([angles.sin(), angles.cos()])  # (2, B, 1, L, Dh), another for each sample
    keep = torch.tensor([3, 1])
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: torch.tensor([3, 1, 0, 2]))

    def residual(branch, x, *args):
        out = x.clone()
        out[keep] += branch(x[keep], *args) * 2
        return out

    r, kv_kept = rope[:, keep], kv if shared_kv else kv[keep]
    y = residual(lambda s: layer.self_attention(s, rope=r), x)
    y = residual(lambda s: layer.cross_attention(s, kv_kept, rope_q=r, rope_k=r), y)
    y = residual(layer.mlp, y)
    torch.testing.assert_close(layer(x, kv, rope, rope), y, atol=1e-4, rtol=1e-4)


def test_stochastic_depth_under_autocast(randomize):
    layer = randomize(TransformerEncoderLayer(D, FF, 2, drop_path_rate=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(4, L, D))
    y.float().sum().backward()
    assert layer.mlp.fc1.weight.grad.abs().max() > 0


def test_wrong_drop_path_rate():
    with pytest.raises(ValueError, match="drop_path_rate"):
        TransformerEncoderLayer(D, FF, 2, drop_path_rate=1.0)


def test_drop_path():
    x = torch.randn(4000, 2, 3) + 5
    y = drop_path(x, 0.25, True)
    dropped = (y == 0).flatten(1).all(1)
    torch.testing.assert_close(y[~dropped], x[~dropped] / 0.75)
    assert abs(dropped.float().mean() - 0.25) < 0.05
    assert drop_path(x, 0.25, False) is x
    assert drop_path(x, 0.0, True) is x
    assert (drop_path(x, 1.0, True) == 0).all()
    module = DropPath(0.5)
    assert (module(x) == 0).any()
    assert module.eval()(x) is x
    with pytest.raises(ValueError, match="drop_prob"):
        DropPath(1.5)


def test_layer_scale():
    x = torch.randn(B, L, D)
    m = LayerScale(D, 0.5)
    assert m.gamma.shape == (D,)
    torch.testing.assert_close(m(x), x * 0.5)
    assert LayerScale(D).gamma[0].item() == pytest.approx(1e-5)
    y = x.clone()
    with torch.no_grad():
        assert LayerScale(D, 0.5, inplace=True)(y) is y
    torch.testing.assert_close(y, x * 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_truncated_normal(dtype):
    x = initialization.trunc_normal_(torch.empty(200, 200, dtype=dtype))
    x = x.double()
    assert x.abs().max() <= 0.04  # in every dtype, also where 0.04 would be rounded up
    assert x.abs().max() > 0.039
    assert abs(x.mean()) < 5e-4
    # The standard deviation of a normal that is cut at two of its own: 0.880 of it.
    assert x.std().item() == pytest.approx(0.02 * 0.87962566, rel=0.03)
    assert len(x.unique()) > 500


@pytest.mark.parametrize(
    "module",
    [nn.Linear(64, 64), nn.Conv2d(8, 8, 3), nn.Conv3d(4, 4, 3), nn.ConvTranspose2d(8, 8, 3)],
)
def test_initial_weights(module, randomize):
    randomize(module)
    init = initialization.init_linear if isinstance(module, nn.Linear) else initialization.init_conv
    init(module)
    assert 0.03 < module.weight.abs().max() <= 0.04
    assert (module.bias == 0).all()
    initialization.zero_bias_if_present(nn.Linear(2, 2, bias=False))


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("eps", [None, 1e-6])
def test_a_norm_prints_its_settings(norm, eps):
    ours = make_norm(8, norm, eps)
    assert repr(ours).endswith(f"Norm((8,), eps={ours.eps}, elementwise_affine=True)")
