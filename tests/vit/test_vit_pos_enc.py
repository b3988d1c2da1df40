"""Patch embedding, absolute encodings and RoPE."""

import math

import pytest
import torch
import torch.nn.functional as F

from vit.patch_embed import PatchEmbed2d, PatchEmbed3d
from vit.pos_enc import FourierPosition, LearnablePosition, create_grid, create_position_encoder
from vit.rope import RopePositionEmbedding, apply_rope, pad_rope, rope_apply, rope_rotate_half

D = 32


def test_grid():
    grid = create_grid((2, 3))
    expected = [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    torch.testing.assert_close(grid, torch.tensor([expected], dtype=torch.float32))
    integers = create_grid((2, 1, 2), dtype=torch.int64, normalize=False)
    assert integers.tolist() == [[[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]]
    axis = create_grid((13,), dtype=torch.float64)[0, :, 0]
    torch.testing.assert_close(axis, torch.linspace(-1, 1, 13, dtype=torch.float64))
    assert create_grid((1, 1)).tolist() == [[[-1.0, -1.0]]]
    assert create_grid((4, 4), dtype=torch.bfloat16, device="meta").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "image", "patch", "grid"),
    [(PatchEmbed2d, (35, 24), (8, 6), (4, 4)), (PatchEmbed3d, (4, 6, 9), (2, 3, 4), (2, 2, 2))],
)
def test_patch_embed_is_a_linear_map_of_patches(randomize, kind, image, patch, grid):
    m = randomize(kind(3, D, patch, image, pos_enc="none"))
    assert m.pos_enc is None
    assert m.tokenized_size(image) == grid
    assert m.original_size(grid) == tuple(g * p for g, p in zip(grid, patch, strict=True))
    x = torch.randn(2, 3, *image)
    y = m(x)
    assert y.shape == (2, math.prod(grid), D)
    for i, cell in enumerate(torch.cartesian_prod(*map(torch.arange, grid))):
        where = tuple(slice(c * p, c * p + p) for c, p in zip(cell, patch, strict=True))
        pixels = x[(slice(None), slice(None), *where)].flatten(1)
        expected = pixels @ m.patch.weight.flatten(1).T + m.patch.bias
        torch.testing.assert_close(y[:, i], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pos_enc", ["fourier", "learnable"])
def test_patch_embed_adds_positions(randomize, pos_enc):
    m = randomize(PatchEmbed2d(3, D, (8, 8), (32, 24), pos_enc)).eval()
    x = torch.randn(2, 3, 40, 16)
    plain = m.patch(x).flatten(2).mT
    torch.testing.assert_close(m(x), plain + m.pos_enc((5, 2)))
    m.reset_parameters()
    assert m.patch.weight.abs().max() <= 0.04
    assert m.pos_enc((5, 2)).std() < 0.1


def test_patch_embed_errors():
    with pytest.raises(ValueError, match=r"PatchEmbed2d takes .* got shape \(3, 32, 32\)"):
        PatchEmbed2d(3, D, (8, 8), (32, 32))(torch.randn(3, 32, 32))
    with pytest.raises(ValueError, match="patch_size of 3 ints"):
        PatchEmbed3d(3, D, (8, 8), (32, 32))


def test_create_position_encoder():
    learnable = create_position_encoder("learnable", D, (2, 3))
    assert isinstance(learnable, LearnablePosition)
    assert learnable.dropout.p == 0.1
    assert create_position_encoder("learnable", D, (2, 3), dropout=0.0).dropout.p == 0.0
    fourier = create_position_encoder("fourier", D, (2, 3), dtype=torch.float64, device="meta")
    assert isinstance(fourier, FourierPosition)
    assert fourier.w_fourier.dtype == torch.float64
    assert create_position_encoder("none", D, (2, 3), device="meta") is None
    for kind in ("rope", "sinus"):
        with pytest.raises(ValueError, match=kind):
            create_position_encoder(kind, D, (2, 3))


def test_learnable_positions():
    m = LearnablePosition(D, (4, 3), dropout=0.5)
    assert m.positions.shape == (12, D)
    assert abs(m.positions.mean().item()) < 1e-6
    assert m.positions.std(correction=0).item() == pytest.approx(0.02, rel=1e-4)
    assert (m((4, 3)) == 0).float().mean() > 0.3
    torch.testing.assert_close(m.eval()((4, 3)), m.positions[None], atol=0, rtol=0)
    assert LearnablePosition(D + 1, (4, 3)).positions.shape == (12, D + 1)
    plain = LearnablePosition(D, (4, 3), fourier_init=False)
    assert plain.positions.abs().max() <= 0.04


def test_learnable_positions_start_smooth():
    grid = LearnablePosition(64, (8, 8)).positions.unflatten(0, (8, 8))
    near = F.cosine_similarity(grid[:, :-1], grid[:, 1:], dim=-1).mean()
    far = F.cosine_similarity(grid[:, :4], grid[:, 4:], dim=-1).mean()
    assert near > far + 0.2


@pytest.mark.parametrize("dims", [(8, 6), (2, 2), (5, 3)])
def test_learnable_positions_at_another_size(randomize, dims):
    m = randomize(LearnablePosition(D, (4, 3)))
    image = m.positions.mT.reshape(1, D, 4, 3)
    expected = F.interpolate(image, size=dims, mode="bicubic").flatten(2).mT
    assert m(dims).shape == (1, math.prod(dims), D)
    torch.testing.assert_close(m(dims), expected)


def test_learnable_positions_of_a_volume(randomize):
    m = randomize(LearnablePosition(D, (4, 3, 2)))
    image = m.positions.mT.reshape(1, D, 4, 3, 2)
    expected = F.interpolate(image, size=(5, 4, 3), mode="trilinear").flatten(2).mT
    torch.testing.assert_close(m((5, 4, 3)), expected)


def test_expand_positions(randomize):
    m = randomize(LearnablePosition(D, (4, 3)))
    m.positions.requires_grad_(False)
    expected = m((8, 7))
    m.expand_positions((8, 7))
    assert m.spatial_size == (8, 7)
    assert isinstance(m.positions, torch.nn.Parameter)
    assert not m.positions.requires_grad
    assert m.positions.shape == (56, D)
    torch.testing.assert_close(m((8, 7)), expected)
    assert list(m.state_dict()) == ["positions"]


@pytest.mark.parametrize("spatial_size", [(4, 3), (2, 3, 2)])
def test_fourier_positions(randomize, spatial_size):
    m = randomize(FourierPosition(D, spatial_size))
    assert m.w_fourier.shape == (len(spatial_size), D // 2)
    phase = create_grid(spatial_size)[0] @ m.w_fourier
    features = torch.cat([phase.sin(), phase.cos()], dim=-1) / (D / 2) ** 0.5
    torch.testing.assert_close(features.square().sum(-1), torch.ones(len(features)))
    y = m(spatial_size)
    torch.testing.assert_close(y[0], features @ m.w_fc1.weight.T + m.w_fc1.bias)
    assert m([s + 1 for s in spatial_size]).shape[1] == math.prod(s + 1 for s in spatial_size)
    m.reset_parameters()
    assert 0.6 < m.w_fourier.std() < 1.4
    with pytest.raises(ValueError, match="even hidden_size"):
        FourierPosition(33, spatial_size)


@pytest.mark.parametrize("kind", ["fourier", "learnable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_positions_in_other_dtypes(kind, dtype):
    m = create_position_encoder(kind, D, (4, 3), dtype=dtype).eval()
    reference = create_position_encoder(kind, D, (4, 3)).eval()
    reference.load_state_dict({k: v.float() for k, v in m.state_dict().items()})
    for dims in ((4, 3), (8, 5)):
        y = m(dims)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), reference(dims), atol=2e-3, rtol=2e-2)


# RoPE


def rope_of(**kw):
    return RopePositionEmbedding(D, num_heads=2, **kw)


def test_rope_periods():
    torch.testing.assert_close(
        rope_of(base=10.0).periods, torch.tensor([10 ** (2 * i / 8) for i in range(4)])
    )
    torch.testing.assert_close(
        rope_of(base=None, min_period=0.5, max_period=32.0).periods,
        torch.tensor([0.5 * 64 ** (i / 3) for i in range(4)]),
    )
    one = RopePositionEmbedding(8, num_heads=2, base=None, min_period=2.0, max_period=9.0)
    assert one.periods.tolist() == [2.0]
    assert list(rope_of().state_dict()) == ["periods"]


@pytest.mark.parametrize(
    ("normalize", "sizes"), [("separate", (4, 6)), ("max", (6, 6)), ("min", (4, 4))]
)
def test_rope_is_the_formula(normalize, sizes):
    rope = rope_of(normalize_coords=normalize).eval()
    sin, cos = rope(H=4, W=6)
    assert sin.shape == cos.shape == (24, 16)
    for token in (0, 5, 13, 23):
        position = (token // 6, token % 6)
        coords = [2 * (p + 0.5) / s - 1 for p, s in zip(position, sizes, strict=True)]
        half = [2 * math.pi * c / 100 ** (2 * i / 8) for c in coords for i in range(4)]
        angles = torch.tensor(half * 2)
        torch.testing.assert_close(sin[token], angles.sin(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(cos[token], angles.cos(), atol=1e-5, rtol=1e-5)


def test_rotate_half():
    x = torch.tensor([1.0, 2, 3, 4])
    assert rope_rotate_half(x).tolist() == [-3, -4, 1, 2]
    torch.testing.assert_close(rope_rotate_half(rope_rotate_half(x)), -x)


def test_rope_is_an_isometry_and_a_rotation():
    x = torch.randn(2, 2, 12, 16, dtype=torch.float64)
    sin, cos = rope_of(dtype=torch.float64).eval()(H=3, W=4)
    y = rope_apply(x, sin, cos)
    assert not torch.allclose(x, y)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rope_apply(y, -sin, cos), x)
    # As complex numbers: the pair (i, i + 8) turns by its angle.
    z = torch.complex(x[..., :8], x[..., 8:]) * torch.complex(cos[:, :8], sin[:, :8])
    torch.testing.assert_close(y, torch.cat([z.real, z.imag], dim=-1))


def test_rope_is_relative():
    """The product of a query and a key depends on the difference of their positions only."""
    rope = rope_of(dtype=torch.float64).eval()(H=5, W=6)
    q, k = torch.randn(2, 16, dtype=torch.float64)
    q = apply_rope(q.expand(1, 1, 30, 16), rope)[0, 0].unflatten(0, (5, 6))
    k = apply_rope(k.expand(1, 1, 30, 16), rope)[0, 0].unflatten(0, (5, 6))
    for dy, dx in ((0, 0), (1, 0), (2, 3), (3, 1)):
        product = (q[: 5 - dy, : 6 - dx] * k[dy:, dx:]).sum(-1)
        torch.testing.assert_close(product, product[0, 0].expand_as(product))
    assert not torch.allclose((q[0, 0] * k[0, 0]).sum(), (q[0, 0] * k[2, 3]).sum())


def test_rope_leaves_prefix_tokens():
    x = torch.randn(2, 2, 15, 16)
    rope = rope_of().eval()(H=3, W=4)
    y = apply_rope(x, rope)
    torch.testing.assert_close(y[..., :3, :], x[..., :3, :], atol=0, rtol=0)
    torch.testing.assert_close(y[..., 3:, :], apply_rope(x[..., 3:, :], rope), atol=0, rtol=0)
    # The padded form, which the model uses, is the same to the last bit.
    assert pad_rope(rope, 3).shape == (2, 15, 16)
    torch.testing.assert_close(apply_rope(x, pad_rope(rope, 3)), y, atol=0, rtol=0)
    batched = torch.stack([rope, rope.flip(1)], dim=1).unsqueeze(2)  # (2, B, 1, L, Dh)
    z = apply_rope(x, batched)
    torch.testing.assert_close(z[:1], y[:1])
    torch.testing.assert_close(z[1:], apply_rope(x[1:], rope.flip(1)))
    torch.testing.assert_close(apply_rope(x, pad_rope(batched, 3)), z, atol=0, rtol=0)
    with pytest.raises(ValueError, match="12 positions"):
        apply_rope(x[..., :5, :], rope)


def test_rope_dtypes():
    x = torch.randn(1, 2, 12, 16)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        m = rope_of(dtype=dtype).eval()
        assert m(H=3, W=4).dtype == m.periods.dtype == dtype
    wide = rope_of(dtype=torch.float64).eval()(H=3, W=4)
    half = apply_rope(x.bfloat16(), wide)
    assert half.dtype == torch.bfloat16
    exact = rope_apply(x.bfloat16().double(), *wide)
    torch.testing.assert_close(half, exact.bfloat16(), atol=0, rtol=0)


def test_bfloat16_rope_is_rounded_once():
    m = rope_of(dtype=torch.bfloat16).eval()
    exact = rope_of(dtype=torch.float64).eval()
    exact.periods.copy_(m.periods)
    error = (m(H=20, W=20).double() - exact(H=20, W=20)).abs().max()
    assert error < 2**-8


def coordinates(m, **kw):
    sin, cos = m(H=3, W=4, **kw)
    period = m.periods[3]
    angles = torch.atan2(sin, cos)[:, [3, 7]]  # the slowest period of both axes: no wrap
    return angles * period / (2 * math.pi)  # (L, 2)


def test_rope_augmentations():
    base = {"base": 1e4, "dtype": torch.float64}
    plain = coordinates(rope_of(**base).eval())
    torch.testing.assert_close(coordinates(rope_of(**base).train()), plain)

    shift = rope_of(shift_coords=0.3, **base)
    moved = torch.stack([coordinates(shift) - plain for _ in range(200)])  # (200, L, 2)
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))  # one shift per axis
    assert 0.25 < moved.abs().max() <= 0.3
    assert not torch.allclose(moved[..., 0], moved[..., 1])

    jitter = rope_of(jitter_coords=1.5, **base)
    factor = torch.stack([coordinates(jitter) / plain for _ in range(200)]).clamp(1e-9)
    inner = [0, 3, 8, 11]  # the corners: no coordinate near zero
    factor = factor[:, inner]
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
    assert 1.4 < factor.max() <= 1.5
    assert 1 / 1.5 <= factor.min() < 1 / 1.4
    assert abs(factor.log().mean()) < 0.06  # log-uniform
    assert not torch.allclose(factor[..., 0], factor[..., 1])

    rescale = rope_of(rescale_coords=1.5, **base)
    factor = torch.stack([coordinates(rescale) / plain for _ in range(50)])[:, inner]
    torch.testing.assert_close(factor, factor[:, :1, :1].expand_as(factor))  # shared by the axes
    assert factor.max() > 1.2
    for m in (shift, jitter, rescale):
        torch.testing.assert_close(coordinates(m.eval()), plain)


def test_rope_seed():
    m = rope_of(shift_coords=0.3, jitter_coords=1.2, rescale_coords=1.2)
    before = torch.get_rng_state()
    a = m(H=3, W=4, rope_seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a, m(H=3, W=4, rope_seed=3))
    assert not torch.equal(a, m(H=3, W=4, rope_seed=4))
    assert not torch.equal(m(H=3, W=4), m(H=3, W=4))
    assert torch.equal(m.eval()(H=3, W=4, rope_seed=3), m(H=3, W=4))


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"embed_dim": 36, "num_heads": 2}, "divisible by 4"),
        ({"base": None}, "either base or both"),
        ({"base": None, "min_period": 1.0}, "either base or both"),
        ({"min_period": 1.0, "max_period": 2.0}, "either base or both"),
        ({"min_period": 1.0}, "either base or both"),
        ({"normalize_coords": "mean"}, "normalize_coords"),
        ({"jitter_coords": 0.0}, "jitter_coords must be positive"),
        ({"rescale_coords": -1.0}, "rescale_coords must be positive"),
    ],
)
def test_rope_errors(kw, message):
    with pytest.raises(ValueError, match=message):
        RopePositionEmbedding(**{"embed_dim": D, "num_heads": 2, **kw})
