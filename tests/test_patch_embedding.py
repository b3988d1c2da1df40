"""The pass that keeps the rows of a patch embedding: where it does, and where not. No compile;
the numbers are compared in test_ops_convolution.py and test_models_vit.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tracing import trace
from vit import ViT, ViTConfig

KEPT = torch.ops.torch_max_backend.patch_embedding.default


def kept(function, *args, dynamic=False):
    return trace(function, *args, dynamic=dynamic).graph.find_nodes(op="call_function", target=KEPT)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("size", [[8, 8], [8, 8, 12]])
def test_the_patches_of_a_vit(size, dynamic):
    config = ViTConfig(
        3, [4] * len(size), size, 1, 48, 24, 2, dtype=torch.float32, pos_enc="learnable"
    )
    (node,) = kept(ViT(config).eval(), torch.randn(2, 3, *size), dynamic=dynamic)
    assert [int(n) for n in node.meta["grid"]] == [n // 4 for n in size]


def rows(convolution):
    return lambda x: convolution(x).flatten(2).transpose(1, 2)


def test_the_eager_answer_of_background_mode_is_the_same():
    convolution, x = nn.Conv2d(3, 5, 4, 4), torch.randn(2, 3, 9, 8)
    gm = trace(rows(convolution), x)
    order = [convolution.weight, convolution.bias, x]
    shapes = [node.meta["val"].shape for node in gm.graph.find_nodes(op="placeholder")]
    with torch.no_grad():
        got = gm(*[next(a for a in order if a.shape == shape) for shape in shapes])[0]
        torch.testing.assert_close(got, rows(convolution)(x))


PATCHES = nn.Conv2d(4, 8, 2, 2)
ELSEWHERE = {
    "overlapping": rows(nn.Conv2d(4, 8, 3, 2)),
    "padded": rows(nn.Conv2d(4, 8, 2, 2, padding=1)),
    "dilated": rows(nn.Conv2d(4, 8, 2, 2, dilation=2)),
    "grouped": rows(nn.Conv2d(4, 8, 2, 2, groups=2)),
    "transposed": rows(nn.ConvTranspose2d(4, 8, 2, 2)),
    "not turned": lambda x: PATCHES(x).flatten(2) + 1,
    "turned otherwise": lambda x: PATCHES(x).flatten(2).permute(1, 2, 0),
    "flattened otherwise": lambda x: PATCHES(x).flatten(1, 2).transpose(1, 2),
    "used twice": lambda x: (y := PATCHES(x), y.flatten(2).transpose(1, 2)),
}


@pytest.mark.parametrize("why", ELSEWHERE)
def test_others_are_left_alone(why):
    assert not kept(ELSEWHERE[why], torch.randn(2, 4, 8, 8))
