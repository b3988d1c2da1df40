"""What a compiled graph does at run time: weights, aliases, layouts, mutation, threads, training.

All graphs of this file are traced first and compiled as one MAX module.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from torch_max_backend import max_backend, pipeline, warm_start
from torch_max_backend.executable import CompiledGraph


class Program:
    """Functions by name, traced through ``torch.compile``; nothing runs on MAX before ``start``."""

    def __init__(self) -> None:
        self.running = False
        self.functions: dict[str, Callable[..., Any]] = {}
        self.modules: dict[str, nn.Module] = {}
        self.graphs: dict[str, list[CompiledGraph]] = {}

    def add(
        self,
        name: str,
        function: Callable[..., Any],
        *example: Any,
        options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """Traces ``function`` with example inputs; calls are answered by eager until ``start``."""
        graphs = self.graphs[name] = []

        def backend(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            assert not self.running, "a recompile"
            original = pipeline.compile_graph

            def record(*args: Any, **kwargs: Any) -> CompiledGraph:
                graphs.append(original(*args, **kwargs))
                return graphs[-1]

            with (
                mock.patch.object(pipeline, "compile_graph", record),
                mock.patch.object(warm_start, "find", lambda key: None),  # traced in every process
            ):
                compiled = max_backend(gm, inputs, options=options)
            return lambda *args: compiled(*args) if self.running else gm(*args)

        compiled = torch.compile(function, backend=backend, fullgraph=True, **settings)
        compiled(*example)
        self.functions[name] = compiled
        if isinstance(function, nn.Module):
            self.modules[name] = function

    def start(self) -> None:
        self.running = True

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.functions[name]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
        self.register_buffer("offset", torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + self.offset


class Frozen(Mlp):
    """Of its own code, so that Dynamo does not take its input's size for a dynamic one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class Counter(nn.Module):
    """Writes to a buffer and to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        x.add_(1.0)
        return x * self.mean


def layouts(x: torch.Tensor) -> tuple[Any, ...]:
    """Results whose strides, aliases or kinds matter."""
    y = x * 2 + 1
    return (
        y,
        y,
        None,
        7,
        x,
        x.view(-1),
        x.t(),
        y.t(),
        y.unsqueeze(1).expand(-1, 3, -1),
        y[:, ::2],
        y.permute(1, 0).contiguous().permute(1, 0),
        x.clone(),
        x.reshape(-1).clone(),
        x[1:].clone(),
        y.sum(),
    )


def sizes(x: torch.Tensor, count: int, factor: float) -> tuple[Any, ...]:
    """Dynamic sizes, int and float arguments, int results."""
    return x * count + factor, x.shape[0] * 2 + count, torch.arange(x.shape[1]) - count


def empties(x: torch.Tensor, scalar: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """0-size and 0-d inputs."""
    return x.sum(0) * scalar, x @ x.t(), torch.cat([x, x]), scalar + 1


def told_by_the_data(x: torch.Tensor) -> tuple[Any, ...]:
    """Sizes and numbers that only a run can tell."""
    positive = x[x > 0]
    count = (x > 0).sum().item()
    torch._check(count < 20, lambda: "too many positive numbers")
    return (
        positive,
        positive.unsqueeze(0).expand(3, -1).t(),
        count + 1,
        x.max().item(),
        (x[0, 0] > 0).item(),
        torch.arange(count) * count,
        x[1] * x.argmin().item(),
    )


def negative_view() -> torch.Tensor:
    """A tensor whose memory holds the negatives of its numbers, and which is contiguous."""
    return torch.randn(1, dtype=torch.complex64).conj().imag


def attend(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.scaled_dot_product_attention(x, x + 1, x * 2, is_causal=True)


@pytest.fixture(scope="module")
def program() -> Program:
    torch._dynamo.reset()
    torch.manual_seed(0)
    traced = Program()
    with torch.no_grad():
        traced.add("mlp", Mlp().eval(), torch.randn(3, 8))
        traced.add("frozen", Frozen().eval(), torch.randn(9, 8), options={"freeze": True})
        traced.add("layouts", layouts, torch.randn(4, 6))
        traced.add("strided", lambda x: x.exp() + x, torch.randn(6, 4).t())
        traced.add("negative", lambda x: x * 2 + 1, negative_view())
        traced.add("sizes", sizes, torch.randn(3, 5), 7, 0.5, dynamic=True)
        with torch._dynamo.config.patch(
            capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
        ):
            traced.add("data", told_by_the_data, torch.randn(4, 6))
        traced.add("empties", empties, torch.randn(0, 4), torch.tensor(2.5))
        traced.add("counter", Counter(), torch.randn(3, 8))
        traced.add("dropout", lambda x: nn.functional.dropout(x, 0.25), torch.ones(64, 64))
        queries = torch.randn(1, 2, 5, 8)
        for kind in ("flash", "composed"):
            traced.add(kind, attend, queries, options={"attention": kind})
    traced.add("training", Mlp(), torch.randn(3, 8))
    traced.start()
    return traced


@torch.no_grad()
def check_mlp(program: Program, x: torch.Tensor) -> None:
    torch.testing.assert_close(program["mlp"](x), program.modules["mlp"](x))


def test_one_module_serves_all(program: Program) -> None:
    check_mlp(program, torch.randn(3, 8))
    graphs = [graph for graphs in program.graphs.values() for graph in graphs]
    assert len(graphs) == len(program.graphs)  # the backward comes when it is run
    assert all(graph.model is not None for graph in graphs)


CHANGES = ["in place", "data", "state dict", "resize", "buffer"]


@torch.no_grad()
def change_weights(module: nn.Module, change: str) -> None:
    weight = module.layers[0].weight
    if change == "in place":
        weight.mul_(2.0)
    elif change == "data":
        weight.data = torch.randn_like(weight)
    elif change == "state dict":
        module.load_state_dict({k: torch.randn_like(v) for k, v in module.state_dict().items()})
    elif change == "resize":
        weight.data.resize_(640, 640)  # moves the storage under the weight
        weight.normal_()
    else:
        module.offset.normal_()


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(program: Program, change: str) -> None:
    module, x = program.modules["mlp"], torch.randn(3, 8)
    with torch.no_grad():
        before = program["mlp"](x)
        change_weights(module, change)
        after = program["mlp"](x)
    assert not torch.allclose(before, after)
    check_mlp(program, x)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_frozen_weights_are_seen_and_told(
    program: Program, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    module, x = program.modules["frozen"], torch.randn(9, 8)
    with torch.no_grad():
        torch.testing.assert_close(program["frozen"](x), module(x))
        caplog.clear()
        change_weights(module, change)
        for _ in range(2):
            torch.testing.assert_close(program["frozen"](x), module(x))
    told = [record for record in caplog.records if "weights have changed" in record.message]
    assert len(told) == (change != "buffer")  # which is read as it is


def test_frozen_weights_are_computed_once(
    program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    (graph,) = program.graphs["frozen"]
    x = torch.randn(9, 8)
    with torch.no_grad():
        program["frozen"](x)
        values = graph._frozen._frozen[1]
        assert len(values) == 2  # of two layers
        graph._bound = None  # bound anew, as in another of autograd's modes
        program["frozen"](x)
    assert graph._frozen._frozen[1] is values
    assert "weights have changed" not in caplog.text


def test_weights_are_bound_once(program: Program) -> None:
    x = torch.randn(3, 8)
    (graph,) = program.graphs["mlp"]
    check_mlp(program, x)
    bound = graph._bound
    check_mlp(program, x)
    assert graph._bound is bound is not None
    state = program.modules["mlp"].state_dict()
    assert len(state) == sum(buffer is not None for buffer in bound.buffers)


def test_a_dead_weight_is_released(program: Program) -> None:
    (graph,) = program.graphs["mlp"]
    check_mlp(program, torch.randn(3, 8))
    weights = [torch.randn_like(value) for value in program.modules["mlp"].state_dict().values()]
    graph._bound = graph._bind_weights(weights)
    del weights[0]
    gc.collect()
    assert graph._bound is None


def test_a_weight_of_the_same_memory_and_other_strides_is_seen(program: Program) -> None:
    """Called directly: Dynamo skips its guards on parameters at times, but not always."""
    module, x = program.modules["mlp"], torch.randn(3, 8)
    (graph,) = program.graphs["mlp"]
    call, captured = CompiledGraph.__call__, []

    def record(graph: CompiledGraph, args: list[Any]) -> list[Any]:
        captured.extend(args)
        return call(graph, args)

    with mock.patch.object(CompiledGraph, "__call__", record):
        check_mlp(program, x)
    weight = module.layers[0].weight
    turned = weight.detach().as_strided(weight.shape, (1, weight.shape[0]))
    for factor in (1.0, 2.0):  # changed in place between the calls
        turned.mul_(factor)
        (result,) = graph([turned if arg is weight else arg for arg in captured])
        with torch.no_grad():
            expected = torch.func.functional_call(module, {"layers.0.weight": turned}, (x,))
        torch.testing.assert_close(result, expected)


def test_results_are_laid_out_as_eager_lays_them_out(program: Program) -> None:
    x = torch.randn(4, 6)
    with torch.no_grad():
        got, want = program["layouts"](x), layouts(x)
    for place, (a, b) in enumerate(zip(got, want, strict=True)):
        if not isinstance(b, torch.Tensor):
            assert a == b and type(a) is type(b), place
            continue
        torch.testing.assert_close(a, b, msg=lambda text, place=place: f"{place}: {text}")
        assert a.stride() == b.stride(), place
        aliases = b.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert (a.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) == aliases, place
    assert got[0] is got[1] and got[4] is x


def test_strided_inputs(program: Program) -> None:
    for x in (torch.randn(6, 4).t(), torch.randn(6, 4).t().clone().t().contiguous().t()):
        with torch.no_grad():
            torch.testing.assert_close(program["strided"](x), x.exp() + x)


def test_input_with_the_negative_bit(program: Program) -> None:
    x = negative_view()
    assert x.is_neg() and x.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(program["negative"](x), x * 2 + 1)


def test_unaligned_input(program: Program) -> None:
    x = torch.randn(1 + 24)[1:].view(4, 6)  # 4 bytes past an allocation's start
    with torch.no_grad():
        for a, b in zip(program["layouts"](x), layouts(x), strict=True):
            if isinstance(b, torch.Tensor):
                torch.testing.assert_close(a, b)


def test_dynamic_sizes_and_numbers(program: Program) -> None:
    for rows, columns, count, factor in [(3, 5, 7, 0.5), (4, 9, -3, 2.25), (7, 2, 11, -1.0)]:
        x = torch.randn(rows, columns)
        with torch.no_grad():
            got, want = program["sizes"](x, count, factor), sizes(x, count, factor)
        torch.testing.assert_close(got[0], want[0])
        assert got[1] == want[1] and type(got[1]) is int
        assert torch.equal(got[2], want[2]) and got[2].dtype == want[2].dtype


def test_what_only_a_run_can_tell(program: Program) -> None:
    for seed in range(3):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            got, want = program["data"](x), told_by_the_data(x)
        for a, b in zip(got, want, strict=True):
            if isinstance(b, torch.Tensor):
                assert a.stride() == b.stride()
                torch.testing.assert_close(a, b)
            else:
                assert type(a) is type(b) and a == b
    with torch.no_grad(), pytest.raises(RuntimeError):
        program["data"](torch.ones(4, 6))


def test_empty_and_scalar_inputs(program: Program) -> None:
    x, scalar = torch.randn(0, 4), torch.tensor(-1.5)
    with torch.no_grad():
        for a, b in zip(program["empties"](x, scalar), empties(x, scalar), strict=True):
            assert a.shape == b.shape and torch.equal(a, b)


def test_mutated_input_and_buffer(program: Program) -> None:
    module = program.modules["counter"]
    x, twin = torch.randn(3, 8), Counter()
    twin.mean.copy_(module.mean)
    same = x.clone()
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(program["counter"](x), twin(same))
        torch.testing.assert_close(x, same)
        torch.testing.assert_close(module.mean, twin.mean)


def test_random_numbers_follow_torch_seed(program: Program) -> None:
    x = torch.ones(64, 64)
    with torch.no_grad():
        torch.manual_seed(5)
        first, second = program["dropout"](x), program["dropout"](x)
        torch.manual_seed(5)
        assert torch.equal(program["dropout"](x), first)
    assert not torch.equal(first, second)
    kept = (first != 0).float().mean().item()
    assert abs(kept - 0.75) < 5 * (0.75 * 0.25 / x.numel()) ** 0.5
    assert torch.allclose(first[first != 0], torch.tensor(1 / 0.75))


def test_attention_by_option(program: Program) -> None:
    x = torch.randn(1, 2, 5, 8)
    for kind in ("flash", "composed"):
        with torch.no_grad():
            torch.testing.assert_close(program[kind](x), attend(x))
        (graph,) = program.graphs[kind]
        kernels = " ".join(map(str, graph.model.kernel_summaries))
        assert ("custom__torch_max_backend.attention" in kernels) == (kind == "flash")


def test_training_step(program: Program) -> None:
    module, x = program.modules["training"], torch.randn(3, 8)
    program["training"](x).square().sum().backward()
    got = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, msg=lambda t, n=name: f"{n}: {t}")


def test_eight_threads_share_a_graph(program: Program) -> None:
    inputs = [torch.randn(3, 8) for _ in range(8)]
    with torch.no_grad():
        expected = [program.modules["mlp"](x) for x in inputs]
    wrong: list[int] = []

    def work(place: int) -> None:
        with torch.no_grad():
            for _ in range(50):
                if not torch.allclose(program["mlp"](inputs[place]), expected[place], atol=1e-5):
                    wrong.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_two_threads_compile_at_once(program: Program) -> None:
    def one(x: torch.Tensor) -> torch.Tensor:
        return x.sin() + 1

    def two(x: torch.Tensor) -> torch.Tensor:
        return x.cos() * 2

    results: dict[str, torch.Tensor] = {}

    def work(function: Callable[..., torch.Tensor], x: torch.Tensor) -> None:
        with torch.no_grad():
            results[function.__name__] = torch.compile(function, backend="max")(x)

    x = torch.randn(7, 3)
    threads = [threading.Thread(target=work, args=(f, x)) for f in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    torch.testing.assert_close(results["one"], one(x))
    torch.testing.assert_close(results["two"], two(x))
