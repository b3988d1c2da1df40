"""Self-attention, cross-attention and attentive pooling against their formulas."""

import math

import pytest
import torch
from torch import nn

from vit.attention import AttentivePool, CrossAttention, SelfAttention
from vit.rope import RopePositionEmbedding, rope_apply

B, L, LK, D, H = 2, 6, 5, 32, 2
DH = D // H


def split_heads(x):
    return x.reshape(x.shape[0], x.shape[1], H, DH).permute(0, 2, 1, 3)


def attend(weights, v, module):
    x = (weights @ v).permute(0, 2, 1, 3).reshape(v.shape[0], -1, D)
    return module.out_proj(x)


@pytest.mark.parametrize("norm_type", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("qk", [False, True])
@pytest.mark.parametrize("with_rope", [False, True])
def test_self_attention_is_the_formula(randomize, norm_type, qk, with_rope):
    m = randomize(SelfAttention(D, H, norm_type=norm_type, qk_normalization=qk)).eval()
    x = torch.randn(B, L, D)
    rope = RopePositionEmbedding(D, num_heads=H)(H=2, W=3) if with_rope else None

    weight = m.qkv_proj.weight
    normed = m.norm(x)
    q, k, v = (
        split_heads(normed @ weight[i * D : (i + 1) * D].T + m.qkv_proj.bias[i * D : (i + 1) * D])
        for i in range(3)
    )
    if qk:
        q, k = m.q_norm(q), m.k_norm(k)
    if rope is not None:
        q, k = rope_apply(q, *rope), rope_apply(k, *rope)
    expected = (q @ k.mT / math.sqrt(DH)).softmax(-1)

    weights = m.forward_weights(x, rope=rope)
    assert weights.shape == (B, H, L, L)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, L))
    torch.testing.assert_close(m(x, rope=rope), attend(expected, v, m), atol=1e-4, rtol=1e-4)


def test_self_attention_mask(randomize):
    m = randomize(SelfAttention(D, H)).eval()
    x = torch.randn(B, L, D)
    mask = torch.ones(L, L, dtype=torch.bool)
    mask[:, -1] = False
    y = m(x, attn_mask=mask)
    changed = x.clone()
    changed[:, -1] = torch.randn(B, D)
    torch.testing.assert_close(m(changed, attn_mask=mask)[:, :-1], y[:, :-1])
    assert not torch.allclose(m(changed)[:, :-1], m(x)[:, :-1])


def test_cross_attention_is_the_formula(randomize):
    m = randomize(CrossAttention(D, H)).eval()
    x, kv = torch.randn(B, L, D), torch.randn(B, LK, D)
    rope_q = RopePositionEmbedding(D, num_heads=H)(H=2, W=3)
    rope_k = RopePositionEmbedding(D, num_heads=H)(H=1, W=5)
    q = rope_apply(split_heads(m.q_proj(m.norm(x))), *rope_q)
    k, v = (split_heads(t) for t in m.kv_proj(kv).split(D, dim=-1))  # no norm on keys and values
    expected = (q @ rope_apply(k, *rope_k).mT / math.sqrt(DH)).softmax(-1)
    torch.testing.assert_close(m.forward_weights(x, kv, rope_q, rope_k), expected)
    y = m(x, kv, rope_q=rope_q, rope_k=rope_k)
    torch.testing.assert_close(y, attend(expected, v, m), atol=1e-4, rtol=1e-4)
    mask = torch.ones(L, LK, dtype=torch.bool)
    mask[:, 0] = False
    changed = kv.clone()
    changed[:, 0] = 3.0
    torch.testing.assert_close(m(x, kv, mask), m(x, changed, attn_mask=mask))


def test_submodules_and_shapes():
    m = SelfAttention(D, H, bias=False, qk_normalization=True, norm_type="layernorm")
    assert {n for n, _ in m.named_children()} == {
        "norm",
        "qkv_proj",
        "q_norm",
        "k_norm",
        "out_proj",
        "dropout",
        "attention_dropout",
    }
    assert m.qkv_proj.weight.shape == (3 * D, D)
    assert m.qkv_proj.bias is None
    assert m.out_proj.bias is None
    assert m.q_norm.weight.shape == (DH,)
    assert SelfAttention(D, H).q_norm is None
    cross = CrossAttention(D, H, dtype=torch.bfloat16)
    assert cross.q_proj.weight.shape == (D, D)
    assert cross.kv_proj.weight.shape == (2 * D, D)
    assert {p.dtype for p in cross.parameters()} == {torch.bfloat16}


def test_dropout_only_in_training(randomize):
    x = torch.randn(B, L, D)
    for hidden, attention in ((0.5, 0.0), (0.0, 0.5)):
        m = randomize(SelfAttention(D, H, hidden, attention))
        m.eval()
        torch.testing.assert_close(m(x), m(x), atol=0, rtol=0)
        m.train()
        assert not torch.allclose(m(x), m(x))


def test_reset_parameters(randomize):
    m = randomize(SelfAttention(D, H))
    m.reset_parameters()
    assert m.qkv_proj.weight.abs().max() <= 0.04
    assert (m.qkv_proj.bias == 0).all()
    assert (m.norm.weight == 1).all()


def test_heads_that_do_not_divide():
    for make in (SelfAttention, CrossAttention, AttentivePool):
        with pytest.raises(ValueError, match="divisible by num_attention_heads"):
            make(32, 3)
    with pytest.raises(ValueError, match="Unsupported norm_type"):
        SelfAttention(32, 2, norm_type="none")


@pytest.mark.parametrize("queries", [1, 3])
def test_attentive_pool(randomize, queries):
    m = randomize(AttentivePool(D, H, queries)).eval()
    x = torch.randn(B, L, D)
    y, weights = m(x), m.forward_weights(x)
    assert m.query.shape == (1, queries, D)
    assert y.shape == ((B, D) if queries == 1 else (B, queries, D))
    assert weights.shape == (B, H, queries, L)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, queries))
    # Pooling does not know the order of the tokens.
    order = torch.randperm(L)
    torch.testing.assert_close(m(x[:, order]), y, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(m.forward_weights(x[:, order]), weights[..., order])
    assert set(dict(m.named_children())) == {"cross_attention"}


def test_attentive_pool_is_not_zero_when_fresh():
    assert AttentivePool(D, H)(torch.randn(B, L, D)).abs().max() > 0


@pytest.mark.parametrize("queries", [0, -1])
def test_attentive_pool_without_queries(queries):
    with pytest.raises(ValueError, match="num_queries must be positive"):
        AttentivePool(D, H, queries)


def test_gradients_reach_every_parameter(randomize):
    m = randomize(AttentivePool(D, H, 2, qk_normalization=True))
    m(torch.randn(B, L, D)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in m.parameters())
    assert isinstance(m.cross_attention.k_norm, nn.RMSNorm)
