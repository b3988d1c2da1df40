"""What AOTAutograd is told to decompose, and what it expands without being told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._decomp import core_aten_decompositions

from tests.harness import randn
from tests.tracing import trace
from torch_max_backend import registry
from torch_max_backend.composites import multi_head_attention, replace_composites
from torch_max_backend.decompositions import (
    decompositions,
    export_decompositions,
    without_composites,
)


def test_only_composites_are_left_out_of_pytorchs_core_decompositions() -> None:
    core, ours = dict(core_aten_decompositions()), without_composites()
    assert len(ours) > 300
    assert ours.keys() <= core.keys()
    assert all(ours[overload] is core[overload] for overload in ours)
    assert all(overload._can_decompose() for overload in core.keys() - ours.keys())


def test_export_has_all_of_aotautograds_decompositions() -> None:
    assert decompositions().keys() <= export_decompositions().keys()


def test_composites_of_a_library_that_comes_later_are_expanded() -> None:
    """As torchao's, which a process may import after its first compilation."""
    export_decompositions()
    with torch.library._scoped_library("test_decompositions", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
        assert torch.ops.test_decompositions.twice.default in export_decompositions()


def test_a_lowering_that_comes_later_is_not_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    overload = next(iter(decompositions()))
    row = registry.Lowering(overload, lambda *args: None)
    monkeypatch.setitem(registry._TABLE, overload, row)
    assert overload not in decompositions()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_composites_are_expanded_without_an_entry(mode: type) -> None:
    def composed(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        grid = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return (
            torch.einsum("nchw,cd->ndhw", grid, w),
            F.interpolate(x, size=(3, 7), mode="nearest-exact"),
            F.prelu(x, w[0]),
            F.conv2d(x, w[:, :, None, None], padding="same"),
            torch.special.xlogy(x.abs(), 2.0),
        )

    with mode():
        graph = trace(composed, randn(2, 3, 4, 5), randn(3, 3)).graph
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    overloads = [target for target in called if isinstance(target, torch._ops.OpOverload)]
    assert overloads
    assert not [overload for overload in overloads if overload._can_decompose()]


@pytest.mark.parametrize("exported", [False, True])
def test_modules_that_torch_calls_whole(exported: bool) -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True).eval()
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True).eval()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.attention = layer, attention

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(x)
            return x + self.attention(x, x, x, need_weights=False)[0]

    with torch.no_grad():
        x = randn(3, 7, 16)
        if exported:
            program = torch.export.export(Model(), (x,))
            replace_composites(program.graph_module)
            graph = program.run_decompositions(dict(export_decompositions())).graph
        else:
            graph = trace(Model(), x).graph
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    assert not multi_head_attention.DECOMPOSITIONS.keys() & set(called)
    assert called.count(torch.ops.torch_max_backend.attention.default) == 2
