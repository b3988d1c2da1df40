"""What a user reads when a graph cannot be lowered; needs no MAX compile.

Each test provokes the error through torch.compile, as a user would meet it.
"""

import inspect
import math
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from max.dtype import DType
from max.graph import TensorValue, ops
from torch._dynamo.exc import BackendCompilerFailed

from tests.tracing import trace
from torch_max_backend import (
    LoweringError,
    MaxBackendError,
    RegistrationError,
    UnsupportedOpsError,
    compilation,
    register_lowering,
    registry,
)
from torch_max_backend.graph_builder import unsupported_ops
from torch_max_backend.registry import MAPPING_TORCH_ATEN_TO_MAX

HERE = Path(__file__).name


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def twist():
    """A custom op of a user: twist(Tensor x, int turns, float[] weights) -> Tensor."""
    with torch.library._scoped_library("torch_max_backend_tests", "FRAGMENT") as library:
        library.define("twist(Tensor x, int turns, float[] weights) -> Tensor")
        library.impl("twist", lambda x, turns, weights: x * turns, "CompositeExplicitAutograd")
        library.impl("twist", lambda x, turns, weights: torch.empty_like(x), "Meta")
        yield torch.ops.torch_max_backend_tests.twist.default


@pytest.fixture
def table(monkeypatch):
    """The table, restored after the test."""
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))


def line_of(function: Callable, text: str) -> int:
    """The line number of the first line of a function that holds a text."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def failure(function: Callable, *args, **kw) -> BackendCompilerFailed:
    with pytest.raises(BackendCompilerFailed) as caught, torch.no_grad():
        torch.compile(function, backend="max", options={"cache": False}, **kw)(*args)
    return caught.value


# ------------------------------------------------------------------ operators without a lowering


def unsupported_model(x):
    a = torch.fft.fft(x).abs()
    b = torch.linalg.qr(x)[0]
    c = torch.fft.fft(x + 1).abs()
    return a + b + c.cos()


@pytest.fixture(scope="module")
def unsupported_failure():
    return failure(unsupported_model, torch.randn(4, 4))


def test_the_error_chains_from_torch_compile(unsupported_failure):
    cause = unsupported_failure.inner_exception
    assert isinstance(cause, UnsupportedOpsError)
    assert isinstance(cause, MaxBackendError)
    assert "aten.linalg_qr.default" in str(unsupported_failure), "the outer message has it all"


def test_every_missing_operator_is_listed_once_with_its_count(unsupported_failure):
    listed = {op.target: op.count for op in unsupported_failure.inner_exception.ops}
    graph = trace(unsupported_model, torch.randn(4, 4)).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    known = {str(overload) for overload in registry.overloads()}
    missing = [name for name in called if name not in known and "getitem" not in name]
    assert "aten.linalg_qr.default" in listed
    assert any("fft" in name for name in listed)
    assert listed == {name: missing.count(name) for name in missing}
    assert 2 in listed.values(), "both transforms count"
    message = str(unsupported_failure.inner_exception)
    for name in listed:
        assert message.count(f"  - {name}") == 1
    assert "(2 times)" in message


def test_each_has_the_line_of_the_user(unsupported_failure):
    sources = {op.target: op.source for op in unsupported_failure.inner_exception.ops}
    for target, text in [("linalg_qr", "torch.linalg.qr"), ("fft", "torch.fft.fft(x)")]:
        (source,) = [s for name, s in sources.items() if target in name]
        assert f"{HERE}:{line_of(unsupported_model, text)}, in unsupported_model" in source
        assert text in source, "the code itself is shown"


def test_it_says_what_to_do(unsupported_failure):
    message = str(unsupported_failure.inner_exception)
    for way in ("register_lowering", "torch.compiler.disable", "fullgraph=True"):
        assert way in message


def test_operators_that_refuse_a_use_of_them_give_their_reason():
    gm = trace(lambda x, y: (x & y) + (x | y), torch.randint(9, (3,)), torch.randint(9, (3,)))
    found = unsupported_ops(gm)
    assert {op.target for op in found} == {"aten.bitwise_and.Tensor", "aten.bitwise_or.Tensor"}
    assert all("int64" in op.reason for op in found)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (torch.zeros(3, dtype=torch.complex64), "MAX has no dtype for torch.complex64"),
        (torch.zeros(3, device="meta"), "tensors on device 'meta' cannot run on MAX"),
    ],
)
def test_an_argument_that_max_cannot_take_is_named(argument, message):
    def double(x, y):
        return x + 1, y * 2

    with pytest.raises(Exception, match=message) as caught:
        torch.compile(double, backend="max", fullgraph=True)(torch.randn(2), argument)
    (line,) = [line for line in str(caught.value).splitlines() if "first used at" in line]
    assert line.strip().startswith("argument 1, [3], first used at")
    assert line.endswith("return x + 1, y * 2")


def test_a_graph_that_is_supported_lists_nothing():
    assert unsupported_ops(trace(lambda x: torch.softmax(x @ x, -1), torch.randn(3, 3))) == []


def test_the_line_inside_a_module_is_the_one_of_its_forward():
    class Transform(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.matrix_exp(x)

    (op,) = unsupported_ops(trace(torch.nn.Sequential(Transform()), torch.randn(3, 3)))
    assert f"{HERE}:{line_of(Transform.forward, 'matrix_exp')}, in forward" in op.source


# --------------------------------------------------------------------------- failing lowerings


def raises(error: BaseException):
    def body(x: TensorValue) -> TensorValue:
        raise error

    return body


BODIES = {
    "raises": (raises(ValueError("no such turn")), ValueError, "no such turn"),
    "index error": (raises(IndexError("past the end")), IndexError, "past the end"),
    "key error": (raises(KeyError("turns")), KeyError, "turns"),
    "assertion": (raises(AssertionError()), AssertionError, "AssertionError"),
    "fake tensor": (
        raises(torch._subclasses.fake_tensor.DataDependentOutputException("twist")),
        torch._subclasses.fake_tensor.DataDependentOutputException,
        "twist",
    ),
    "dynamic output": (
        raises(torch._subclasses.fake_tensor.DynamicOutputShapeException("twist")),
        torch._subclasses.fake_tensor.DynamicOutputShapeException,
        "twist",
    ),
    "unsupported fake": (
        raises(torch._subclasses.fake_tensor.UnsupportedOperatorException("twist")),
        torch._subclasses.fake_tensor.UnsupportedOperatorException,
        "twist",
    ),
    "wrong dtype": (lambda x: ops.cast(x, DType.float64), MaxBackendError, "float64"),
    "wrong shape": (lambda x: ops.permute(x, [1, 0]), MaxBackendError, "[5, 3]"),
    "wrong rank": (lambda x: ops.unsqueeze(x, 0), MaxBackendError, "[1, 3, 5]"),
    "no tensor": (lambda x: [x, x], MaxBackendError, "list"),
    "nothing": (lambda x: None, MaxBackendError, "NoneType"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_failing_lowering_says_where_and_why(twist, table, kind):
    body, cause, detail = BODIES[kind]

    @register_lowering(twist)
    def lower(x, turns, weights):
        return body(x)

    def model(x):
        return twist(x.sin(), 3, [0.5, 0.25]) + 1

    error = failure(model, torch.randn(3, 5))
    found = error.inner_exception
    assert isinstance(found, LoweringError)
    assert isinstance(found.__cause__, cause)
    message = str(found)
    assert detail in message
    assert "lowering torch_max_backend_tests.twist.default failed" in message
    assert "node:   twist" in message
    assert "float32[3, 5], 3, [0.5, 0.25]" in message
    assert f"{HERE}:{line_of(model, 'return')}, in model: return twist(x.sin()" in message
    assert message in str(error), "torch shows it to the user"


def test_arguments_of_a_wrong_type_are_found_before_the_body_runs(twist, table):
    ran = []

    @register_lowering(twist)
    def lower(x: TensorValue, turns: str, weights: list[float]) -> TensorValue:
        ran.append(turns)
        return x

    error = failure(lambda x: twist(x, 3, [0.5]), torch.randn(2)).inner_exception
    assert isinstance(error, LoweringError)
    assert "turns" in str(error) and "str" in str(error)
    assert type(error.__cause__).__name__ == "BeartypeCallHintParamViolation"
    assert not ran


def test_a_result_of_a_wrong_type_is_found(twist, table):
    @register_lowering(twist)
    def lower(x: TensorValue, turns: int, weights: list[float]) -> TensorValue:
        return turns  # type: ignore[return-value]

    error = failure(lambda x: twist(x, 3, [0.5]), torch.randn(2)).inner_exception
    assert type(error.__cause__).__name__ == "BeartypeCallHintReturnViolation"


def test_symbolic_shapes_are_shown(twist, table):
    @register_lowering(twist)
    def lower(x, turns, weights):
        raise ValueError("turned")

    error = failure(lambda x: twist(x, 3, [0.5]), torch.randn(4, 6), dynamic=True)
    assert "float32[s" in str(error.inner_exception)


def test_a_size_that_max_cannot_express_says_so():
    def model(x):
        return x.new_ones(int(math.sin(x.shape[0]) + 4)) * 2

    error = failure(model, torch.randn(9), dynamic=True).inner_exception
    assert isinstance(error, LoweringError)
    assert "uses OpaqueUnaryFn_sin, which has no translation to MAX" in str(error)
    assert "dynamic=False" in str(error), "what to do"


def test_a_graph_after_a_failed_one_is_built_afresh(twist, table):
    """The failure must not leave half a graph in the module that the next graph joins."""

    @register_lowering(twist)
    def lower(x, turns, weights):
        raise ValueError("turned")

    torch.compile(lambda x: x * 2, backend=_lower_only)(torch.randn(3))
    failure(lambda x: twist(x, 3, [0.5]), torch.randn(2))
    (program,) = compilation._open
    assert len(program._module.top_level_graph_names()) == len(program._built)


def _lower_only(gm, example_inputs):
    """max_backend without the run, and so without the compile."""
    from torch_max_backend import max_backend

    max_backend(gm, example_inputs, options={"cache": False})
    return gm.forward


# --------------------------------------------------------------------------------- background


@pytest.fixture
def fresh_program(monkeypatch):
    """No graph of another test is compiled with those of this one."""
    monkeypatch.setattr(compilation, "_open", [])


def in_the_background(model: Callable) -> Callable:
    options = {"compile": "background", "cache": False}
    return torch.compile(model, backend="max", fullgraph=True, options=options)


def test_a_lowering_that_fails_in_the_background_is_raised_at_the_next_call(
    twist, table, fresh_program
):
    @register_lowering(twist)
    def lower(x, turns, weights):
        raise ValueError("turned")

    x = torch.randn(3)
    run = in_the_background(lambda x: twist(x, 3, [0.5]))
    assert torch.equal(run(x), x * 3), "eager's answer"
    deadline = time.monotonic() + 60
    with pytest.raises(LoweringError, match="turned"):
        while time.monotonic() < deadline:
            run(x)
            time.sleep(0.01)
    with pytest.raises(LoweringError, match="turned"):
        run(x)


def test_a_lowering_that_fails_leaves_the_other_graphs(twist, table, fresh_program, monkeypatch):
    @register_lowering(twist)
    def lower(x, turns, weights):
        raise ValueError("turned")

    compiled = []

    def compile_module(module, graphs, use_cache):
        compiled.append((module.top_level_graph_names(), [graph.name for graph in graphs]))

    monkeypatch.setattr(compilation, "_compile_module", compile_module)
    monkeypatch.setattr(compilation.Program, "start", compilation.Program._in_background)
    runs = [in_the_background(f) for f in (torch.sin, lambda x: twist(x, 3, [0.5]), torch.cos)]
    monkeypatch.setattr(compilation.CompiledGraph, "__call__", lambda self, args: [args[0]])
    for run in runs:
        run(torch.randn(3))
    (program,) = compilation._open
    program.start()
    assert [type(graph.error) for graph in program.graphs] == [
        type(None),
        LoweringError,
        type(None),
    ]
    names = [graph.name for graph in program.graphs]
    assert compiled[0] == (["g0", "g1"], [names[0], names[2]])


def test_the_compile_starts_after_the_first_answer(twist, fresh_program, monkeypatch):
    """It would take the processor from eager's."""
    events: list[str] = []
    monkeypatch.setattr(compilation.Program, "start", lambda self: events.append("start"))
    eager = torch.fx.GraphModule.__call__
    with mock.patch.object(torch.fx.GraphModule, "__call__", autospec=True) as call:
        call.side_effect = lambda gm, *args: events.append("eager") or eager(gm, *args)
        in_the_background(torch.sin)(torch.randn(3))
    assert events[-2:] == ["eager", "start"] and events.count("start") == 1


# ------------------------------------------------------------------------------- registration


def test_a_row_of_ones_own_is_found_and_read(twist, table):
    @register_lowering(twist)
    def lower(x, turns, weights):
        return x

    assert registry.find(twist) is not None
    assert twist in MAPPING_TORCH_ATEN_TO_MAX
    assert unsupported_ops(trace(lambda x: twist(x, 3, [0.5]), torch.randn(2))) == []


def test_a_second_row_needs_replace(twist, table):
    def first(x, turns, weights):
        return x

    def second(x, turns, weights):
        return x

    register_lowering(twist)(first)
    with pytest.raises(RegistrationError, match="twice"):
        register_lowering(twist)(second)
    register_lowering(twist, replace=True)(second)
    assert inspect.unwrap(MAPPING_TORCH_ATEN_TO_MAX[twist]) is second


def test_a_refused_replacement_keeps_the_first(twist, table):
    register_lowering(twist)(lambda x, turns, weights: x)
    kept = MAPPING_TORCH_ATEN_TO_MAX[twist]
    with pytest.raises(RegistrationError):
        register_lowering(twist, replace=True)(lambda x, weights, turns: x)
    assert MAPPING_TORCH_ATEN_TO_MAX[twist] is kept


@pytest.mark.parametrize(
    "key, function, message",
    [
        ("twist", lambda x, turns: x, "schema"),
        ("twist", lambda x, turns, scales: x, "schema"),
        ("twist", lambda x, turns, *, weights: x, "keyword-only"),
        ("twist", lambda x, turns, weights=(): x, "default of weights"),
        (torch.ops.aten.add, lambda self, other: self, "overloads"),
        (torch.ops.aten.add_.Tensor, lambda self, other, *, alpha=1: self, "aten.add instead"),
        (torch.ops.aten.cos.out, lambda self, *, out: self, "aten.cos instead"),
        (torch.cos, lambda self: self, "OpOverload"),
    ],
    ids=["short", "name", "keyword", "default", "packet", "in place", "out", "function"],
)
def test_registration_is_checked_against_the_schema(twist, table, key, function, message):
    with pytest.raises(RegistrationError, match=message):
        register_lowering(twist if key == "twist" else key)(function)
