"""Address arithmetic of views against PyTorch's own. No compile."""

from __future__ import annotations

import pytest
import torch

from tests.tracing import trace
from torch_max_backend.views import view_of

VIEWS = {
    "permute": lambda x: x.permute(2, 0, 3, 1),
    "transpose": lambda x: x.transpose(1, -1),
    "t": lambda x: x[0, 0].t(),
    "select": lambda x: x.select(1, 2),
    "select negative": lambda x: x[:, -1],
    "slice": lambda x: x[:, 1:3],
    "slice step": lambda x: x[..., 1::2],
    "slice past the end": lambda x: x[:, 2:100],
    "unsqueeze": lambda x: x.unsqueeze(-2),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "expand": lambda x: x[:, :1].expand(2, 5, 4, 6),
    "expand new axes": lambda x: x.expand(3, 2, 3, 4, 6),
    "chunk": lambda x: x.chunk(3, -1)[2],
    "split": lambda x: x.split([1, 2], 1)[1],
    "unbind": lambda x: x.unbind(2)[3],
    "view of dense": lambda x: x.view(6, 24),
    "view that splits": lambda x: x.transpose(0, 1).view(3, 2, 2, 2, 3, 2),
    "qkv": lambda x: x.view(2, 12, 3, 2, 1).permute(2, 0, 3, 1, 4)[1],
    "heads of a chunk": lambda x: x.chunk(2, -1)[1].reshape(2, 3, 4, 3, 1).transpose(1, 2),
    "alias": lambda x: x.detach(),
}


def result_of(function, *args, dynamic=False):
    gm = trace(lambda x: function(x + 1) * 2, *args, dynamic=dynamic)
    (node,) = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)
    return node.args[0]


@pytest.mark.parametrize("name", VIEWS)
def test_views_lie_where_torch_has_them(name):
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    view = view_of(result_of(VIEWS[name], x))
    assert view.base.target is torch.ops.aten.add.Tensor
    want = VIEWS[name](x)
    assert torch.equal(x.as_strided(view.sizes, view.strides, view.offset), want)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.transpose(1, 2).reshape(2, 72, 1),
        lambda x: x.transpose(0, 1).reshape(6, 4, 6),
        lambda x: x.flip(0),
    ],
)
def test_what_must_be_copied_is_its_own_base(function):
    node = result_of(function, torch.randn(2, 3, 4, 6))
    view = view_of(node)
    assert view.base.target is not torch.ops.aten.add.Tensor
    assert view.dense()


def test_symbolic_sizes_stay_symbolic():
    def heads(x):
        return x.view(*x.shape[:2], 3, 2, 1).permute(2, 0, 3, 1, 4)[1]

    node = result_of(heads, torch.randn(4, 5, 6), dynamic=True)
    view = view_of(node)
    assert view.base.target is torch.ops.aten.add.Tensor
    assert [isinstance(n, torch.SymInt) for n in view.sizes] == [True, False, True, False]
    assert view.offset == 2 and view.strides[1:] == (1, 6, 1)
