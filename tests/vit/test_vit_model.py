"""The model as a whole: inputs, resolutions, dtypes, masks, rope."""

import copy

import pytest
import torch
from torch import nn

from vit import (
    AttentivePoolHeadConfig,
    HeadConfig,
    TransposedConv2dHeadConfig,
    UpsampleHeadConfig,
    ViT,
    ViTConfig,
    ViTFeatures,
)
from vit.tokens import apply_mask

HEADS = {
    "cls": HeadConfig(out_features=10),
    "pool": AttentivePoolHeadConfig(out_features=7),
    "seg": TransposedConv2dHeadConfig(out_features=2),
    "up": UpsampleHeadConfig(out_features=2, num_upsample_stages=1),
}
PREFIX = {"num_cls_tokens": 1, "num_register_tokens": 2}
POS_ENC = ["rope", "learnable", "fourier", "none"]


def image(config, batch=2):
    return torch.randn(batch, config.in_channels, *config.img_size, dtype=config.dtype)


@pytest.mark.parametrize("pos_enc", POS_ENC)
@pytest.mark.parametrize("prefix", [{}, PREFIX])
def test_forward(make_config, pos_enc, prefix):
    config = make_config(pos_enc=pos_enc, **prefix)
    features = config.instantiate()(image(config))
    assert isinstance(features, ViTFeatures)
    assert features.dense_features.shape == (2, 12 + (3 if prefix else 0), 32)
    assert features.cls_tokens.shape[1] == (1 if prefix else 0)
    assert features.register_tokens.shape[1] == (2 if prefix else 0)
    assert features.tokenized_size == (4, 3)
    assert features.visual_tokens_as_grid.shape == (2, 4, 3, 32)
    assert features.dense_features.isfinite().all()


@pytest.mark.parametrize("pos_enc", ["learnable", "fourier", "none"])
def test_forward_of_a_volume(make_config, pos_enc):
    config = make_config(volume=True, pos_enc=pos_enc, **PREFIX)
    features = config.instantiate()(image(config))
    assert features.dense_features.shape == (2, 15, 32)
    assert features.visual_tokens_as_grid.shape == (2, 2, 3, 2, 32)


def test_forward_is_the_composition_of_its_parts(make_config, randomize):
    config = make_config(patch_embed_normalization=True, layer_scale=0.5, **PREFIX)
    m = randomize(config.instantiate()).eval()
    x = image(config)
    tokens = m.patch_embed_norm(m.stem(x))
    tokens = torch.cat(
        [m.cls_tokens.expand(2, -1, -1), m.register_tokens.expand(2, -1, -1), tokens], 1
    )
    rope = m.prepare_rope((4, 3))
    for block in m.blocks:
        tokens = block(tokens, rope)
    torch.testing.assert_close(m(x, output_norm=False).dense_features, tokens)
    torch.testing.assert_close(m(x).dense_features, m.output_norm(tokens))


def test_fresh_model_is_its_embedding(make_config):
    config = make_config(**PREFIX)
    m = config.instantiate().eval()
    x = image(config)
    torch.testing.assert_close(m(x, output_norm=False).visual_tokens, m.stem(x), atol=0, rtol=0)


@pytest.mark.parametrize("pos_enc", POS_ENC)
def test_other_resolutions(make_config, randomize, pos_enc):
    config = make_config(pos_enc=pos_enc)
    m = randomize(config.instantiate()).eval()
    for size, grid in (((64, 40), (8, 5)), ((39, 17), (4, 2)), ((8, 8), (1, 1))):
        features = m(torch.randn(1, 3, *size))
        assert features.tokenized_size == grid
        assert features.visual_tokens_as_grid.shape == (1, *grid, 32)
        assert features.dense_features.isfinite().all()


@pytest.mark.parametrize("pos_enc", POS_ENC)
@pytest.mark.parametrize("norm_type", ["rmsnorm", "layernorm"])
def test_bfloat16(make_config, randomize, pos_enc, norm_type):
    config = make_config(
        pos_enc=pos_enc, norm_type=norm_type, dtype=torch.bfloat16, heads=HEADS, **PREFIX
    )
    m = randomize(config.instantiate())
    assert {t.dtype for t in m.state_dict().values()} == {torch.bfloat16}
    y = m.eval()(image(config)).dense_features
    assert y.dtype == torch.bfloat16
    exact = copy.deepcopy(m).float()
    expected = exact(image_ := image(config).float()).dense_features
    y = m(image_.bfloat16()).dense_features
    # RMSNorm without eps takes that of its input's dtype.
    error = (y.float() - expected).abs().mean() / expected.abs().mean()
    assert error < 0.05


@pytest.mark.parametrize("prefix", [{}, PREFIX])
def test_autocast(make_config, randomize, prefix):
    config = make_config(**prefix, drop_path_rate=0.5)
    m = randomize(config.instantiate())
    x = image(config, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = m(x).dense_features
        again = m(x.bfloat16(), m.create_mask(x, 0.5, 1)).dense_features
    (y.float().square().sum() + again.float().square().sum()).backward()
    assert all(p.grad is not None for p in m.parameters() if p.requires_grad)
    m.eval()
    with torch.autocast("cpu", torch.bfloat16):
        y = m(x).dense_features
    expected = m(x).dense_features
    assert (y - expected).abs().mean() / expected.abs().mean() < 0.05


def test_wrong_input(make_config):
    m = make_config().instantiate()
    x = torch.randn(2, 3, 32, 24)
    with pytest.raises(ValueError, match=r"float32 weights, the input is torch.bfloat16: cast"):
        m(x.bfloat16())
    with pytest.raises(ValueError, match=r"got shape \(3, 32, 24\)"):
        m(x[0])
    with pytest.raises(ValueError, match=r"mask must have the shape \(2, 12\)"):
        m(x, torch.ones(2, 11, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool"):
        m(x, torch.ones(2, 12))
    ragged = torch.ones(2, 12, dtype=torch.bool)
    ragged[0, 0] = False
    with pytest.raises(ValueError, match="same number of tokens in every row, got 11 to 12"):
        m(x, ragged)


@pytest.mark.parametrize("pos_enc", POS_ENC)
def test_mask(make_config, randomize, pos_enc):
    config = make_config(pos_enc=pos_enc, **PREFIX)
    m = randomize(config.instantiate()).eval()
    x = image(config)
    mask = m.create_mask(x, 0.25, 1)
    assert mask.sum(1).tolist() == [3, 3]
    features = m(x, mask)
    assert features.visual_tokens.shape == (2, 3, 32)
    assert features.cls_tokens.shape == (2, 1, 32)
    assert features.tokenized_size is None
    # Dropped patches have no influence, at any value.
    pixels = ~mask.unflatten(1, (4, 3)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    other = torch.where(pixels[:, None], torch.randn_like(x) * 9, x)
    torch.testing.assert_close(m(other, mask).dense_features, features.dense_features)
    # A mask that keeps all is no mask.
    everything = m(x, torch.ones_like(mask)).dense_features
    torch.testing.assert_close(everything, m(x).dense_features, atol=1e-5, rtol=1e-4)
    # With no attention between tokens, dropping commutes with the model.
    for block in m.blocks:
        nn.init.zeros_(block.self_attention.out_proj.weight)
    expected = apply_mask(mask, m(x).visual_tokens)
    torch.testing.assert_close(m(x, mask).visual_tokens, expected, atol=1e-5, rtol=1e-4)


def test_masked_rope_belongs_to_the_kept_tokens(make_config, randomize):
    config = make_config(rope_normalize_coords="max", img_size=(32, 32))
    m = randomize(config.instantiate()).eval()
    x = image(config)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = True
    mask[1, 2:] = True
    mask = mask.flatten(1)
    rope = m.prepare_rope((4, 4), mask)
    full = m.prepare_rope((4, 4))
    assert full.shape == (2, 16, 16)
    assert rope.shape == (2, 2, 1, 8, 16)
    torch.testing.assert_close(rope[:, 0, 0], full[:, :8], atol=0, rtol=0)
    torch.testing.assert_close(rope[:, 1, 0], full[:, 8:], atol=0, rtol=0)
    # RoPE is relative: the same pixels at another place give the same features.
    moved = torch.cat([x[:, :, 16:], x[:, :, :16]], dim=2)
    a, b = m(x, mask.flip(0)), m(moved, mask)
    torch.testing.assert_close(a.dense_features, b.dense_features, atol=1e-4, rtol=1e-3)


def test_prepare_rope_errors(make_config):
    with pytest.raises(ValueError, match="pos_enc is 'fourier'"):
        make_config(pos_enc="fourier").instantiate().prepare_rope((4, 3))
    m = make_config(volume=True, pos_enc="rope").instantiate()
    with pytest.raises(ValueError, match="RoPE not supported for non-2D input"):
        m.prepare_rope((2, 3, 2))
    with pytest.raises(ValueError, match="RoPE not supported for non-2D input"):
        m(image(m.config))


def test_rope_seed(make_config, randomize):
    config = make_config(rope_shift_coords=0.5, rope_jitter_coords=2.0, hidden_dropout=0.0)
    m = randomize(config.instantiate())
    for block in m.blocks:
        block.self_attention.attention_dropout.p = 0.0
    x = image(config)
    a, b, c = (m(x, rope_seed=s).dense_features for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)
    assert torch.equal(m.prepare_rope((4, 3), rope_seed=1), m.prepare_rope((4, 3), rope_seed=1))


def test_create_mask(make_config):
    m = make_config(img_size=(64, 64)).instantiate()
    x = torch.randn(3, 3, 64, 48)
    mask = m.create_mask(x, 0.25, 2, roll=True)
    assert mask.shape == (3, 48)
    assert mask.sum(1).tolist() == [12] * 3


def test_prefix_tokens(make_config, randomize):
    m = randomize(make_config(num_cls_tokens=2, num_register_tokens=3).instantiate())
    x = torch.randn(4, 5, 32)
    y = m.add_prefix_tokens(x)
    expected = [m.cls_tokens.expand(4, -1, -1), m.register_tokens.expand(4, -1, -1), x]
    assert torch.equal(y, torch.cat(expected, 1))
    empty = make_config().instantiate()
    assert empty.cls_tokens.shape == empty.register_tokens.shape == (1, 0, 32)
    assert not empty.cls_tokens.requires_grad
    assert m.cls_tokens.requires_grad
    assert empty.add_prefix_tokens(x) is x
    assert empty.normalize_patch_embeddings(x) is x


STEM = ["stem.patch.weight", "stem.patch.bias"]
BLOCK = [
    "self_attention.norm.weight",
    "self_attention.qkv_proj.weight",
    "self_attention.qkv_proj.bias",
    "self_attention.out_proj.weight",
    "self_attention.out_proj.bias",
    "mlp.norm.weight",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
]
COMMON = {*STEM, "register_tokens", "cls_tokens", "output_norm.weight"}
COMMON |= {f"blocks.{i}.{k}" for i in range(2) for k in BLOCK}
LAYER_NORMS = ["output_norm", "patch_embed_norm"]
LAYER_NORMS += [f"blocks.{i}.{n}" for i in range(2) for n in ("self_attention.norm", "mlp.norm")]


@pytest.mark.parametrize(
    ("changes", "added", "removed"),
    [
        ({}, {"rope.periods"}, set()),
        ({"pos_enc": "none"}, set(), set()),
        ({"pos_enc": "learnable"}, {"stem.pos_enc.positions"}, set()),
        (
            {"pos_enc": "fourier"},
            {"stem.pos_enc.w_fourier", "stem.pos_enc.w_fc1.weight", "stem.pos_enc.w_fc1.bias"},
            set(),
        ),
        (
            {"pos_enc": "none", "layer_scale": 0.1},
            {f"blocks.{i}.layer_scale_{n}.gamma" for i in range(2) for n in ("attn", "mlp")},
            set(),
        ),
        (
            {"pos_enc": "none", "qk_normalization": True},
            {f"blocks.{i}.self_attention.{n}_norm.weight" for i in range(2) for n in "qk"},
            set(),
        ),
        (
            {"pos_enc": "none", "norm_type": "layernorm", "patch_embed_normalization": True},
            {"patch_embed_norm.weight", *(f"{n}.bias" for n in LAYER_NORMS)},
            set(),
        ),
        (
            {"pos_enc": "none", "attention_bias": False, "mlp_bias": False},
            set(),
            {k for k in COMMON if k.startswith("blocks.") and k.endswith(".bias")},
        ),
        ({"pos_enc": "none", "depth": 0}, set(), {k for k in COMMON if k.startswith("blocks.")}),
        (
            {"pos_enc": "none", "heads": HEADS},
            {
                f"heads.{name}.{k}"
                for name in ("cls.proj", "pool.proj.proj", "seg.conv_transpose")
                for k in ("weight", "bias")
            }
            | {
                f"heads.pool.pool.cross_attention.{n}_proj.{k}"
                for n in ("q", "kv", "out")
                for k in ("weight", "bias")
            }
            | {"heads.pool.pool.query", "heads.pool.pool.cross_attention.norm.weight"}
            | {
                f"heads.up.{n}.{k}"
                for n in ("upsample_layers.0", "smooth_layers.0.0", "smooth_layers.0.2")
                for k in ("weight", "bias")
            },
            set(),
        ),
    ],
)
def test_state_dict_keys(make_config, changes, added, removed):
    m = make_config(**changes).instantiate(device="meta")
    assert set(m.state_dict()) == (COMMON | added) - removed


def test_attributes(make_config):
    m = make_config(heads=HEADS).instantiate()
    assert type(m.stem).__name__ == "PatchEmbed2d"
    assert m.stem.pos_enc is None
    assert m.patch_embed_norm is None
    assert m.output_norm.eps is None
    assert make_config(norm_type="layernorm").instantiate().output_norm.eps == 1e-5
    volume = make_config(volume=True).instantiate()
    assert type(volume.stem).__name__ == "PatchEmbed3d"
    assert volume.rope is None
    assert m.get_block(1) is m.blocks[1]
    assert m.get_head("cls") is m.heads["cls"]
    with pytest.raises(KeyError, match="No head named 'x'"):
        m.get_head("x")
    assert m.config == make_config(heads=HEADS)


@pytest.mark.parametrize("pos_enc", POS_ENC)
def test_meta_device(make_config, pos_enc):
    config = make_config(pos_enc=pos_enc, heads=HEADS, dtype=torch.bfloat16, **PREFIX)
    m = config.instantiate(device="meta")
    assert {(t.device.type, t.dtype) for t in m.state_dict().values()} == {("meta", torch.bfloat16)}
    reference = config.instantiate().eval()
    m = m.to_empty(device="cpu").eval()
    m.load_state_dict(reference.state_dict())
    x = image(config)
    assert torch.equal(m(x).dense_features, reference(x).dense_features)


@pytest.mark.parametrize("pos_enc", POS_ENC)
@pytest.mark.parametrize("training", [False, True])
def test_forward_stays_on_its_device(make_config, pos_enc, training):
    """On meta, which no operation mixes with the CPU."""
    config = make_config(
        pos_enc=pos_enc,
        rope_shift_coords=0.1,
        rope_rescale_coords=1.5,
        drop_path_rate=0.5,
        **PREFIX,
    )
    m = config.instantiate(device="meta").train(training)
    for size in ((32, 24), (40, 16)):
        x = torch.randn(4, 3, *size, device="meta")
        assert m(x, rope_seed=1).dense_features.is_meta
        assert m(x).dense_features.is_meta
        assert m.create_mask(x, 0.5, 1, roll=True).is_meta


def test_no_layers(make_config):
    config = make_config(depth=0, **PREFIX)
    m = config.instantiate()
    x = image(config)
    torch.testing.assert_close(m(x).visual_tokens, m.output_norm(m.stem(x)))
    assert m.forward_attention_weights(x) == {}


def test_layers_and_heads_can_be_created_and_overridden(make_config):
    class Mine(ViT):
        def create_head(self, name, head_config, device=None, dtype=None):
            head = super().create_head(name, head_config, device=device, dtype=dtype)
            head.name = name
            return head

        def create_encoder_layer(self, *args, **kw):
            layer = super().create_encoder_layer(*args, **kw)
            layer.mine = True
            return layer

    config = make_config(
        heads={"a": HeadConfig(out_features=3)},
        activation="swiglu",
        drop_path_rate=0.25,
        layer_scale=0.5,
    )
    m = Mine(config)
    assert m.get_head("a").name == "a"
    assert all(block.mine for block in m.blocks)
    x, kv = torch.randn(2, 5, 32), torch.randn(2, 4, 32)
    for create in (m.create_decoder_layer, m.create_cross_attention_layer):
        layer = create()
        assert layer(x, kv).shape == x.shape
        assert layer.drop_path_rate == 0.25
        assert layer.mlp.gated
        assert (layer.layer_scale_mlp.gamma == 0.5).all()
        other = create(device="meta", dtype=torch.float64)
        assert {(p.device.type, p.dtype) for p in other.parameters()} == {("meta", torch.float64)}


def test_construction_never_casts(make_config, monkeypatch):
    def fail(*args, **kw):
        raise AssertionError("Module.to was called")

    monkeypatch.setattr(nn.Module, "to", fail)
    m = make_config(dtype=torch.bfloat16, heads=HEADS).instantiate()
    m.create_decoder_layer()
    m.create_cross_attention_layer()


def frozen(module):
    return {n for n, p in module.named_parameters() if not p.requires_grad and p.numel() > 0}


def test_freezing(make_config):
    m = make_config(mlp_requires_grad=False, heads=HEADS, **PREFIX).instantiate()
    assert frozen(m) == {n for n, _ in m.named_parameters() if ".mlp." in n}
    m.mlp_requires_grad_(True)
    assert frozen(m) == set()
    m = make_config(self_attention_requires_grad=False, heads=HEADS).instantiate()
    assert frozen(m) == {n for n, _ in m.named_parameters() if ".self_attention." in n}
    m.self_attention_requires_grad_(True)
    assert frozen(m) == set()
    m.backbone_requires_grad_(False)
    names = {n for n, p in m.named_parameters() if p.numel() > 0}
    assert frozen(m) == {n for n in names if not n.startswith("heads.")}
    m.backbone_requires_grad_(True)
    assert frozen(m) == set()
    assert not m.cls_tokens.requires_grad


@pytest.mark.parametrize("masked", [False, True])
def test_activation_checkpointing(make_config, randomize, masked):
    config = make_config(activation_checkpointing=True, drop_path_rate=0.5, **PREFIX)
    plain = make_config(drop_path_rate=0.5, **PREFIX)
    m = randomize(config.instantiate())
    reference = plain.instantiate()
    reference.load_state_dict(m.state_dict())
    x = image(config, 4)
    mask = m.create_mask(x, 0.5, 1) if masked else None
    calls = []
    m.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    grads = []
    for model in (m, reference):
        torch.manual_seed(1)
        model(x, mask).dense_features.square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert len(calls) == 2  # forward, and again in backward
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name])
    calls.clear()
    m.eval()(x).dense_features.sum().backward()
    assert len(calls) == 1


def test_attention_weights(make_config, randomize):
    config = make_config(**PREFIX)
    m = randomize(config.instantiate()).eval()
    x = image(config)
    captured = []
    sdpa = nn.functional.scaled_dot_product_attention

    def spy(q, k, v, **kw):
        captured.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))
        return sdpa(q, k, v, **kw)

    nn.functional.scaled_dot_product_attention = spy
    try:
        m(x)
    finally:
        nn.functional.scaled_dot_product_attention = sdpa
    weights = m.forward_attention_weights(x)
    assert list(weights) == ["layer_0", "layer_1"]
    for layer, expected in zip(weights.values(), captured, strict=True):
        assert layer.shape == (2, 2, 15, 4, 3)
        assert not layer.requires_grad
        # What the model computes, with rope and prefix tokens.
        torch.testing.assert_close(layer.flatten(-2), expected[..., 3:], atol=1e-5, rtol=1e-4)


def test_attention_weights_call_the_block(make_config, monkeypatch):
    m = make_config().instantiate().eval()
    seen = []
    attention = m.blocks[1].self_attention
    original = attention.forward_weights

    def spy(tokens, *args, **kw):
        seen.append(tokens.shape)
        return original(tokens, *args, **kw)

    monkeypatch.setattr(attention, "forward_weights", spy)
    m.forward_attention_weights(image(m.config))
    assert seen == [(2, 12, 32)]


def test_attention_weights_of_a_volume(make_config):
    m = make_config(volume=True, **PREFIX).instantiate().eval()
    weights = m.forward_attention_weights(image(m.config))
    assert weights["layer_1"].shape == (2, 2, 15, 2, 3, 2)


def test_heads_on_features(make_config, randomize):
    config = make_config(heads=HEADS, num_cls_tokens=1)
    m = randomize(config.instantiate()).eval()
    features = m(image(config))
    grid = features.visual_tokens_as_grid.movedim(-1, 1)
    assert m.get_head("cls")(features.cls_tokens[:, 0]).shape == (2, 10)
    assert m.get_head("pool")(features.visual_tokens).shape == (2, 7)
    assert m.get_head("seg")(grid).shape == (2, 2, 8, 6)
    assert m.get_head("up")(grid).shape == (2, 2, 8, 6)


def test_training_reaches_every_parameter(make_config):
    config = make_config(
        **PREFIX,
        layer_scale=0.1,
        qk_normalization=True,
        patch_embed_normalization=True,
        heads=HEADS,
    )
    m = config.instantiate()
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    target = torch.randn(2, 15, 32)
    for _ in range(2):  # the branches end in zero: their inputs move after the first step
        optimizer.zero_grad()
        (m(image(config)).dense_features - target).square().sum().backward()
        optimizer.step()
    without = {n for n, p in m.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert {n for n in without if not n.startswith("heads.")} == set()


def test_config_round_trip_builds_the_same_model(make_config):
    config = make_config(heads=HEADS, **PREFIX)
    m = config.instantiate().eval()
    again = ViTConfig.from_yaml(config.to_yaml()).instantiate().eval()
    again.load_state_dict(m.state_dict())
    x = image(config)
    assert torch.equal(m(x).dense_features, again(x).dense_features)
