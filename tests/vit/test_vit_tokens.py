"""Masks of tokens: made, applied and undone."""

import pytest
import torch

from vit.tokens import (
    apply_mask,
    create_mask,
    generate_non_overlapping_mask,
    kept_indices,
    mask_is_ragged,
    unapply_mask,
)

EVEN = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1]]).bool()
RAGGED = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()


def test_mask_is_ragged():
    assert mask_is_ragged(EVEN) is False
    assert mask_is_ragged(RAGGED) is True
    assert mask_is_ragged(torch.zeros(0, 4, dtype=torch.bool)) is False


def test_kept_indices():
    assert kept_indices(EVEN).tolist() == [[0, 2], [2, 3]]
    assert kept_indices(torch.zeros(2, 4, dtype=torch.bool)).shape == (2, 0)
    with pytest.raises(ValueError, match="same number of tokens in every row, got 0 to 3"):
        kept_indices(RAGGED)


def test_apply_mask():
    x = torch.randn(2, 4, 5, requires_grad=True)
    y = apply_mask(EVEN, x)
    torch.testing.assert_close(y, torch.stack([x[0, [0, 2]], x[1, [2, 3]]]), atol=0, rtol=0)
    y.sum().backward()
    assert torch.equal(x.grad, EVEN[..., None].expand(2, 4, 5).float())


@pytest.mark.parametrize("padding", [0, -1.5])
def test_apply_ragged_mask_pads_on_the_right(padding):
    x = torch.randn(3, 4, 5)
    y = apply_mask(RAGGED, x, padding_value=padding)
    expected = torch.full((3, 3, 5), float(padding))
    expected[0] = x[0, [0, 2, 3]]
    expected[1, 0] = x[1, 3]
    torch.testing.assert_close(y, expected, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apply_mask_with_fill(dtype):
    x = torch.randn(3, 4, 5, dtype=dtype)
    y = apply_mask(RAGGED, x, fill_value=2.5)
    assert y.dtype == dtype
    assert torch.equal(y[RAGGED], x[RAGGED])
    assert (y[~RAGGED] == 2.5).all()
    token = torch.randn(1, 1, 5, dtype=dtype)
    z = apply_mask(RAGGED, x, fill_value=token)
    assert torch.equal(z[~RAGGED], token[0].expand(8, 5))
    assert (apply_mask(RAGGED, x, fill_value=0)[~RAGGED] == 0).all()


def test_apply_mask_errors():
    x = torch.randn(2, 4, 5)
    for mask in (EVEN[:, :3], EVEN[:1], EVEN[0]):
        with pytest.raises(ValueError, match=r"mask must have the shape \(2, 4\)"):
            apply_mask(mask, x)
    with pytest.raises(ValueError, match="bool"):
        apply_mask(EVEN.long(), x)


@pytest.mark.parametrize("mask", [EVEN, RAGGED, torch.zeros(2, 4, dtype=torch.bool)])
def test_unapply_mask_is_the_inverse(mask):
    x = torch.randn(len(mask), 4, 5)
    y = unapply_mask(mask, apply_mask(mask, x))
    torch.testing.assert_close(y, x * mask[..., None], atol=0, rtol=0)


def test_unapply_mask_errors():
    with pytest.raises(ValueError, match="keeps 2 tokens, x has 3"):
        unapply_mask(EVEN, torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match="2 rows"):
        unapply_mask(EVEN, torch.randn(3, 2, 5))
    with pytest.raises(ValueError, match="bool"):
        unapply_mask(EVEN.long(), torch.randn(2, 2, 5))


@pytest.mark.parametrize("size", [(7, 5), (8, 8), (3, 4, 5)])
@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.5, 0.77, 0.99])
@pytest.mark.parametrize(("scale", "roll"), [(1, False), (2, False), (2, True)])
def test_create_mask_has_exact_counts(size, ratio, scale, roll):
    mask = create_mask(size, ratio, batch_size=6, scale=scale, roll=roll)
    L = torch.Size(size).numel()
    assert mask.shape == (6, L)
    assert mask.dtype == torch.bool
    assert (~mask).sum(1).tolist() == [round(L * ratio)] * 6


def test_create_mask_is_random_and_uniform():
    mask = create_mask((4, 4), 0.25, batch_size=4000)
    share = (~mask).float().mean(0)
    assert (share - 0.25).abs().max() < 0.04
    torch.manual_seed(5)
    a = create_mask((8, 8), 0.5, 2)
    torch.manual_seed(5)
    assert torch.equal(a, create_mask((8, 8), 0.5, 2))
    assert not torch.equal(a, create_mask((8, 8), 0.5, 2))


def test_create_mask_masks_blocks():
    mask = create_mask((8, 12), 0.5, batch_size=5, scale=4).unflatten(1, (8, 12))
    blocks = mask.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3)  # (5, 2, 3, 16)
    assert (blocks.all(-1) | ~blocks.any(-1)).all()
    assert (~blocks.any(-1)).flatten(1).sum(1).tolist() == [3] * 5


def test_create_mask_rolls_half_of_the_rows():
    torch.manual_seed(1)
    plain = create_mask((8, 8), 0.5, batch_size=400, scale=4)
    torch.manual_seed(1)
    rolled = create_mask((8, 8), 0.5, batch_size=400, scale=4, roll=True)
    same = (plain == rolled).all(1)
    shifted = (plain.roll(2, dims=1) == rolled).all(1)
    assert (same | shifted).all()
    assert 0.4 < shifted.float().mean() < 0.6


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"mask_ratio": 0.0}, r"mask_ratio must be in \(0, 1\)"),
        ({"mask_ratio": 1.0}, r"mask_ratio must be in \(0, 1\)"),
        ({"scale": 0}, "scale must be at least 1"),
        ({"scale": 4}, "larger than scale=4"),
        ({"scale": 5}, "larger than scale=5"),
    ],
)
def test_create_mask_errors(kw, message):
    with pytest.raises(ValueError, match=message):
        create_mask(**{"size": (4, 8), "mask_ratio": 0.5, **kw})


def test_non_overlapping_mask():
    mask1 = create_mask((5, 5), 0.6, batch_size=8)  # keeps 10
    mask2 = generate_non_overlapping_mask(mask1, 0.4, 0.5)
    assert mask2.dtype == torch.bool
    assert mask2.sum(1).tolist() == [12] * 8
    assert not (mask1 & mask2).any()
    full = generate_non_overlapping_mask(mask1, 0.4, 0.6)
    assert torch.equal(full, ~mask1)
    with pytest.raises(ValueError, match="10 and 20 tokens cannot be disjoint among 25"):
        generate_non_overlapping_mask(mask1, 0.4, 0.8)
    with pytest.raises(ValueError, match="mask1 keeps 10"):
        generate_non_overlapping_mask(mask1, 0.1, 0.8)
