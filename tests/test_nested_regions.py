"""Regions traced once are put in place, and vit's blocks are such a region. No compile."""

from collections import Counter

import pytest
import torch
from torch import nn

from tests.tracing import trace
from torch_max_backend.errors import MaxBackendError
from torch_max_backend.graph_builder import unsupported_ops
from torch_max_backend.passes import nested_regions, run_passes
from vit import ViT, ViTConfig


class Block(nn.Module):
    """Two results, and a constant of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) + torch.tensor([1.0, 2.0, 3.0, 4.0]), x * 2


class Stack(nn.Module):
    def __init__(self, region) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 4, 1)  # gives the axes that a region reads their static sizes
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.region = region

    def forward(self, x):
        x = self.first(x.unsqueeze(1)).mT
        for block in self.blocks:
            x, doubled = self.region(block, x)
            x = x + doubled
        return x


def call(block, x):
    return block(x)


def operators(gm):
    return Counter(str(node.target) for node in gm.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_flat_graph_is_that_of_the_plain_model(dynamic):
    torch.manual_seed(0)
    stack, x = Stack(torch.compiler.nested_compile_region(call)).eval(), torch.randn(5, 6)
    nested = trace(stack, x, dynamic=dynamic)
    assert not [node for node in nested.graph.nodes if nested_regions.is_region(node)]
    assert not [name for name, _ in nested.named_children()]
    stack.region = call
    plain = trace(stack, x, dynamic=dynamic)
    for name in ("aten.view.default", "aten.add.Tensor", "aten.mul.Tensor"):
        assert operators(nested)[name] == operators(plain)[name] >= 3
    inputs = [node.meta["val"] for node in nested.graph.nodes if node.op == "placeholder"]
    assert len(inputs) == len([n for n in plain.graph.nodes if n.op == "placeholder"])
    assert not unsupported_ops(nested)


def test_numbers():
    torch.manual_seed(0)
    stack, x = Stack(torch.compiler.nested_compile_region(call)).eval(), torch.randn(5, 6)
    graph = trace(stack, x)
    weights = {tuple(p.shape): [] for p in stack.parameters()}
    for parameter in stack.parameters():
        weights[tuple(parameter.shape)].append(parameter)
    arguments = []
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            shape = tuple(node.meta["val"].shape)
            arguments.append(x if shape == (5, 6) else weights[shape].pop(0))
    with torch.no_grad():
        torch.testing.assert_close(graph(*arguments)[0], stack(x))


def test_a_call_that_does_not_fit_the_region_is_an_error():
    stack, x = Stack(torch.compiler.nested_compile_region(call)).eval(), torch.randn(5, 6)

    def spoil(gm, *settings):
        for node in gm.graph.nodes:
            if nested_regions.is_region(node):
                node.args[2].meta["val"] = torch.empty(6, 6)
        run_passes(gm, *settings)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(
            MaxBackendError,
            match=r"traced with torch.float32 .*this call has torch.float32 \[6, 6\].*nested_",
        ),
    ):
        patch.setattr("tests.tracing.run_passes", spoil)
        trace(stack, x)


CONFIG = ViTConfig(3, [4, 4], [8, 8], 3, 16, 32, 2, dtype=torch.float32)


def dynamo_graph(model, x, **settings):
    """What Dynamo hands to a backend."""
    graphs = []

    def backend(gm, example_inputs):
        graphs.append(gm)
        return gm

    torch._dynamo.reset()
    torch.compile(model, backend=backend, fullgraph=True, **settings)(x)
    torch._dynamo.reset()
    return graphs[-1]


def regions(gm):
    return [node for node in gm.graph.nodes if nested_regions.is_region(node)]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_one_block_of_a_vit_stands_for_all(dynamic, norm):
    model = ViT(ViTConfig(3, [4, 4], [8, 8], 3, 16, 32, 2, dtype=torch.float32, norm_type=norm))
    with torch.no_grad():
        gm = dynamo_graph(model.eval(), torch.randn(2, 3, 8, 8), dynamic=dynamic)
    found = regions(gm)
    assert len(found) == 3
    assert len({node.args[0].target for node in found}) == 1


@pytest.mark.parametrize("mode", ["gradients", "training", "export"])
def test_where_blocks_may_differ_or_others_read_the_graph_they_are_plain(mode):
    model, x = ViT(CONFIG).train(mode == "training"), torch.randn(2, 3, 8, 8)
    if mode == "export":
        with torch.no_grad():
            gm = torch.export.export(model, (x,), strict=True).graph_module
    else:
        gm = dynamo_graph(model, x)
    assert not regions(gm)
