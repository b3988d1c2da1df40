"""``options={"freeze": True}``: what is taken out of a graph, and the numbers of what is left.

The numbers are compared with one compile; the graphs are looked at, and run by eager, without one.
What happens when weights change is in test_runtime.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx import GraphModule

from tests import harness
from tests.harness import Case, comparison, integers, randn, short
from torch_max_backend import OptionError, compilation, max_backend, pipeline
from torch_max_backend.frozen_part import FrozenPart
from torch_max_backend.passes import packed_weights
from vit import ViTConfig
from vit.rope import rope_apply

aten = torch.ops.aten
ours = torch.ops.torch_max_backend

# ----------------------------------------------------------------------------------- numbers


module_case = partial(harness.module_case, frozen=True)


class IntMatmul(nn.Module):
    """Sums of products of int8, in float32."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("weight", integers(rows, columns, low=-128, high=128).to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return torch._int_mm(x, self.weight.T)


class Attention(nn.Module):
    """Queries, keys and values from a layer each, fewer heads for the last two."""

    def __init__(self, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.query = nn.Linear(24, 32, bias, dtype=dtype)
        self.key = nn.Linear(24, 16, bias, dtype=dtype)
        self.value = nn.Linear(24, 16, bias, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, 8)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class Gated(nn.Module):
    def __init__(self, gates_first: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(33, 256)
        self.gates_first = gates_first

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layer(x).chunk(2, -1)
        gates, gated = (first, second) if self.gates_first else (second, first)
        return F.silu(gates) * gated


def numbers() -> Iterator[Case]:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        name = short(dtype)
        # less than a panel, a whole one, more; odd depths and rows, rows that workers share
        sizes = [(6, 5, 3), (100, 600, 64), (23, 33, 130), (197, 19, 70)]
        for rows, depth, columns in sizes:
            x = randn(rows, depth, dtype=dtype)
            layer = nn.Linear(depth, columns, dtype=dtype)
            yield module_case(f"linear-{rows}-{depth}-{columns}-{name}", layer, x)
        x = randn(2, 9, 20, dtype=dtype)
        mlp = nn.Sequential(nn.Linear(20, 70), nn.GELU(), nn.Linear(70, 9, bias=False))
        yield module_case(f"mlp-{name}", mlp.to(dtype), x)
        yield module_case(
            f"mlp-dynamic-{name}",
            deepcopy(mlp).to(dtype),
            x,
            dynamic="batch",
            others=[(randn(n, 9, 20, dtype=dtype),) for n in (5, 3)],
        )
        for gates_first in (True, False):
            gated = Gated(gates_first).to(dtype)
            yield module_case(f"gated-{gates_first}-{name}", gated, randn(23, 33, dtype=dtype))
        for bias in (True, False):
            module = Attention(bias, dtype)
            yield module_case(f"attention-{bias}-{name}", module, randn(2, 11, 24, dtype=dtype))
        convolutions = nn.Sequential(
            nn.Conv2d(3, 70, (3, 4), stride=2, padding=1),
            nn.BatchNorm2d(70),
            nn.ReLU(),
            nn.Conv2d(70, 5, 3, dilation=2, bias=False),
        ).to(dtype)
        nn.init.normal_(convolutions[1].weight)
        nn.init.normal_(convolutions[1].running_mean)
        yield module_case(f"conv2d-{name}", convolutions, randn(2, 3, 17, 15, dtype=dtype))
    conv1d = nn.Conv1d(7, 9, 5, padding=2)
    yield module_case("conv1d", conv1d, randn(3, 7, 12))
    conv3d = nn.Conv3d(2, 3, 2, padding=(1, 0, 1))
    yield module_case("conv3d", conv3d, randn(2, 2, 4, 5, 6))
    yield module_case("float16", nn.Linear(12, 70).half(), randn(8, 12, dtype=torch.float16))
    yield module_case("float64", nn.Linear(12, 70).double(), randn(8, 12, dtype=torch.float64))
    x = integers(19, 30, low=-128, high=128, seed="x").to(torch.int8)
    yield Case("int8", IntMatmul(70, 30), (x,), exact=True, frozen=True)


test_numbers = comparison(list(numbers()))

# ------------------------------------------------------------------------------------ graphs


class Frozen:
    """A model's graph after freezing, run by eager PyTorch."""

    def __init__(self, model: Callable[..., Any], *args: Any, **settings: Any) -> None:
        self.gm: GraphModule | None = None
        self.part: FrozenPart | None = None
        backend = partial(max_backend, options={"freeze": True})
        torch._dynamo.reset()
        with mock.patch.object(pipeline, "compile_graph", self._keep), torch.no_grad():
            compiled = torch.compile(model, backend=backend, fullgraph=True, **settings)
            self.answer = compiled(*args)
        torch._dynamo.reset()

    def _keep(self, gm: GraphModule, options: Any, *, frozen: Any, **_: Any) -> Any:
        self.gm, self.part = gm, frozen

        def run(args: list[Any]) -> Any:
            values = frozen.values([args[i] for i in frozen.sources]) if frozen else []
            return gm(*args, *values)

        run._boxed_call = True
        return run

    def count(self, target: Any) -> int:
        return len(self.gm.graph.find_nodes(op="call_function", target=target))

    def targets(self) -> set[Any]:
        return {node.target for node in self.gm.graph.nodes if node.op == "call_function"}


def check(model: nn.Module, *args: Any, **settings: Any) -> Frozen:
    """Freezes it and compares eager's answers before and after."""
    model = model.eval()
    frozen = Frozen(model, *args, **settings)
    with torch.no_grad():
        torch.testing.assert_close(frozen.answer, model(*args))
    return frozen


class Tokens(nn.Module):
    """What a small ViT makes of images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        config = ViTConfig(
            3, [4, 4], [8, 8], 3, width, 32, 2, dtype=torch.float32, activation="gelu"
        )
        self.vit = config.instantiate()

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x).dense_features


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("width", "layers"), [(16, 2), (64, 0)])
def test_every_layer_of_a_vit_is_packed(dynamic: bool, width: int, layers: int):
    """By itself, or in the kernels for an MLP and, where it is wide enough, for attention."""
    frozen = check(Tokens(width), torch.randn(2, 3, 8, 8), dynamic=dynamic)
    assert frozen.count(ours.packed_linear.default) == 3 * layers
    blocks = {ours.mlp.default, ours.self_attention.default}
    nodes = [node for node in frozen.gm.graph.nodes if node.target in blocks]
    assert len(nodes) == (3 if layers else 6)
    assert all(node.kwargs["packed"] for node in nodes)
    assert not frozen.targets() & {aten.addmm.default, ours.linear_activation.default}


def test_projections_of_one_input_are_joined():
    x = torch.randn(2, 11, 24)
    assert check(Attention(True, torch.float32), x).count(ours.packed_linear.default) == 1
    assert check(Attention(False, torch.float32), x).count(ours.packed_linear.default) == 1


@pytest.mark.parametrize("gates_first", [True, False])
def test_a_gated_layer_is_packed(gates_first: bool):
    frozen = check(Gated(gates_first), torch.randn(23, 33))
    assert frozen.count(ours.packed_gated_linear.default) == 1
    assert ours.gated_linear.default not in frozen.targets()


class Elsewhere(Attention):
    """Keys that something besides attention takes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.key(x)


class Rotated(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, 8)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        angles = torch.arange(88.0).reshape(11, 8)
        q, k = (rope_apply(t, angles.sin(), angles.cos()) for t in (q, k))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def test_projections_whose_queries_and_keys_are_rotated_are_joined():
    frozen = check(Rotated(True, torch.float32), torch.randn(2, 11, 24))
    assert frozen.count(ours.rotary_embedding.default) == 2
    assert frozen.count(ours.packed_linear.default) == 1


class OtherInput(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (-1, 8)).transpose(1, 2)
        k, v = (
            layer(x * factor).unflatten(-1, (-1, 8)).transpose(1, 2)
            for factor, layer in enumerate((self.key, self.value), 2)
        )
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class OtherRows(Attention):
    """Queries of the first tokens, keys of those in the middle, values of the last ones."""

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        q, k, v = (
            layer(x[0, start : start + 7]).unflatten(-1, (-1, 8)).transpose(0, 1)
            for start, layer in enumerate(layers)
        )
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pytest.mark.parametrize("model, products", [(Elsewhere, 2), (OtherInput, 3), (OtherRows, 3)])
def test_projections_that_are_not_joined(model: type[nn.Module], products: int):
    frozen = check(model(True, torch.float32), torch.randn(2, 11, 24))
    assert frozen.count(ours.packed_linear.default) == products


class Computed(nn.Module):
    """Weights that are computed from parameters, a mask from a buffer, and one that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.table = nn.Parameter(torch.randn(1, 3, 4, 4))
        self.register_buffer("limits", torch.randn(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        grid = F.interpolate(self.table, (6, 6), mode="bilinear")
        low = self.limits.cumsum(0)[1:3]
        return self.layer(x), x[:, :6] * grid[0, :, 0], x[:, :2] + low, self.limits * 2


def test_what_weights_alone_come_to_is_computed_once():
    frozen = check(Computed(), torch.randn(3, 8))
    # the product has few rows, and its weight is not packed
    kept = {aten.addmm.default, aten.mul.Tensor, aten.add.Tensor}
    views = {aten.permute.default, aten.slice.Tensor, aten.select.int, aten.view.default}
    assert frozen.targets() <= kept | views | {aten.alias.default}
    assert frozen.count(aten.mul.Tensor) == 2  # what is returned is made anew by each call
    assert len(frozen.part.sources) == 4


def test_autocast_casts_once():
    layer, x = nn.Linear(8, 70), torch.randn(9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        casts = check(layer, x).count(aten._to_copy.default)
    assert casts == 1  # the input's


def test_nothing_of_random_numbers_inputs_or_changed_buffers():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.scale = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            noise = torch.rand_like(self.scale)
            return x * (self.calls * 2) + noise * 0 + x.sin()

    model, x = Model(), torch.randn(4, 8)
    frozen = Frozen(model, x)
    assert frozen.part is None
    assert model.calls == 1


@pytest.mark.parametrize(
    "layer, shape",
    [
        pytest.param(nn.Linear(8, 4), (5, 8), id="few rows"),
        pytest.param(nn.Linear(8, 4).double(), (9, 8), id="float64"),
        pytest.param(nn.Conv2d(4, 4, 3, groups=2), (1, 4, 8, 8), id="groups"),
        pytest.param(nn.ConvTranspose2d(4, 4, 3), (1, 4, 8, 8), id="transposed"),
        pytest.param(nn.Conv2d(4, 4, 2, stride=2), (1, 4, 8, 8), id="patches"),
    ],
)
def test_what_stays_as_it_is(layer: nn.Module, shape: tuple[int, ...]):
    frozen = check(layer, torch.randn(shape, dtype=next(layer.parameters()).dtype))
    assert frozen.part is None


@pytest.mark.parametrize(
    "dtype, feature", [(torch.bfloat16, "avx512_bf16"), (torch.int8, "avx_vnni"), (None, "sse")]
)
def test_packed_is_what_the_processor_multiplies_whole(dtype: torch.dtype | None, feature: str):
    layer: nn.Module = IntMatmul(16, 8) if dtype == torch.int8 else nn.Linear(8, 16, dtype=dtype)
    x = torch.ones(32, 8).to(dtype or torch.float32)
    for features in ({"sse", feature}, {"sse"}):
        with mock.patch.object(packed_weights, "target_features", lambda f=features: frozenset(f)):
            count = Frozen(layer, x).count(ours.packed_linear.default)
        assert count == (feature in features)


@pytest.mark.parametrize("shape", [(70, 9), (64, 8), (5, 3, 2), (70, 5, 3, 2), (2, 4, 1, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_panels(shape: tuple[int, ...], dtype: torch.dtype):
    weight = randn(*shape, dtype=dtype)
    panels = ours.pack_weight(weight)
    group = 4 // dtype.itemsize
    channels = -(-shape[1] // group)
    lines = channels * weight[0, 0].numel()
    assert panels.shape == (-(-shape[0] // 64), lines, 64, group) and panels.is_contiguous()
    filters = weight.flatten(2).mT if weight.ndim > 2 else weight.unsqueeze(1)
    for n, place, c in [(0, 0, 0), (shape[0] - 1, filters.shape[1] - 1, shape[1] - 1)]:
        found = panels[n // 64, place * channels + c // group, n % 64, c % group]
        assert found == filters[n, place, c]
    assert panels.count_nonzero() == weight.count_nonzero()


def test_training_is_refused():
    layer = nn.Linear(8, 4)
    compiled = torch.compile(layer, backend="max", options={"freeze": True})
    with pytest.raises((OptionError, BackendCompilerFailed), match=r"torch\.no_grad\(\)"):
        compiled(torch.randn(9, 8))
    torch._dynamo.reset()


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        layer = nn.Linear(8, 4)
        x = torch.randn(9, 8)
    with torch.inference_mode(), pytest.raises(Exception, match=r"torch\.inference_mode\(\)"):
        Frozen(layer, x)


def test_background_mode_answers_with_what_is_frozen():
    options = {"freeze": True, "compile": "background"}
    layer, x = Attention(True, torch.float32), torch.randn(2, 11, 24)
    with mock.patch.object(compilation.Program, "start", lambda program: None), torch.no_grad():
        compiled = torch.compile(layer, backend="max", options=options)
        for _ in range(2):
            torch.testing.assert_close(compiled(x), layer(x))
            layer.key.weight.mul_(2.0)
    torch._dynamo.reset()


def test_it_says_how_much_is_frozen(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="torch_max_backend"):
        check(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), torch.randn(9, 8))
    assert "2 tensors, computed once from 2 weights" in caplog.text
