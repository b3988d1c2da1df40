"""The pass that computes constants while compiling: where it does, and where not. No compile."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.tracing import trace
from torch_max_backend.passes import constant_folding
from vit import ViT, ViTConfig

aten = torch.ops.aten


def targets(gm):
    return {node.target for node in gm.graph.nodes if node.op == "call_function"}


def constants(gm):
    return [getattr(gm, node.target) for node in gm.graph.find_nodes(op="get_attr")]


def test_the_weights_of_an_interpolation():
    gm = trace(lambda x: F.interpolate(x, size=(7, 5), mode="bicubic"), torch.randn(1, 2, 6, 8))
    assert aten.arange.start_step not in targets(gm)
    rows, columns = constants(gm)
    assert rows.shape[-2:] == (7, 6) and columns.shape == (8, 5)
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    torch.testing.assert_close(columns.sum(0), torch.ones(5))


@pytest.mark.parametrize("pos_enc", ["fourier", "rope"])
def test_the_coordinates_of_a_vit(pos_enc):
    """Its frequencies are buffers, which may change."""
    config = ViTConfig(3, [4, 4], [8, 8], 1, 48, 24, 2, dtype=torch.float32, pos_enc=pos_enc)
    gm = trace(ViT(config).eval(), torch.randn(2, 3, 8, 8))
    assert not targets(gm) & {aten.arange.start_step, aten.full.default}
    (coordinates,) = constants(gm)
    assert 2 in coordinates.shape and 4 in coordinates.shape


def test_the_eager_answer_of_background_mode_is_the_same():
    def function(x):
        steps = torch.arange(4, device=x.device) * 0.5
        keep = torch.ones(4, 4, dtype=torch.bool).tril()
        return torch.where(keep, x * steps, torch.tensor(-1.0)), steps.exp()

    x = torch.randn(4, 4)
    gm = trace(function, x)
    assert len(constants(gm)) == 4
    for got, expected in zip(gm(x), function(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


ELSEWHERE = {
    "inputs": lambda x: x * 2 + x.size(0),
    "random": lambda x: x + torch.rand(3, 4) * 2,
    "undefined": lambda x: (x, torch.empty(3, 4) * 2),
    "filled": lambda x: x + torch.zeros(3, 4),
    "expanded": lambda x: x + torch.full((1, 4), 2.0).expand(3, 4),
}


@pytest.mark.parametrize("why", ELSEWHERE)
def test_others_are_left_alone(why):
    assert not constants(trace(ELSEWHERE[why], torch.randn(3, 4)))


def test_sizes_that_are_not_known():
    gm = trace(lambda x: x + torch.arange(x.size(1)) * 2, torch.randn(3, 4), dynamic=True)
    assert not constants(gm)


def test_an_expanded_constant_stays_small():
    gm = trace(lambda x: x + (torch.arange(4) * 2.0).expand(3, 4), torch.randn(3, 4))
    (constant,) = constants(gm)
    assert constant.shape == (4,)


def test_what_is_made_like_an_input():
    gm = trace(lambda x: x + (torch.ones_like(x).cumsum(0) / 2), torch.randn(3, 4))
    (constant,) = constants(gm)
    assert constant[:, 0].tolist() == [0.5, 1.0, 1.5]


def test_a_large_constant_is_computed_where_it_is_used(monkeypatch):
    monkeypatch.setattr(constant_folding, "LARGEST", 15)
    assert not constants(trace(lambda x: x + torch.arange(4).float() * 2, torch.randn(3, 4)))


def test_the_device_may_be_missing():
    """Constants of a GPU's graph are made on the host of a machine without one."""
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        from torch.fx.experimental.proxy_tensor import make_fx

        def function(x):
            return x + torch.arange(4, device="cuda") * 2

        gm = make_fx(function)(torch.empty(4, device="cuda"))
    constant_folding.fold_constants(gm)
    (constant,) = constants(gm)
    assert constant.tolist() == [0, 2, 4, 6]
    (node,) = gm.graph.find_nodes(op="get_attr")
    assert node.meta["val"].device.type == "cuda"
