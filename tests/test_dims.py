"""Symbolic sizes: torch SymInts and sympy expressions to MAX Dims, and to numbers in a graph."""

from __future__ import annotations

import pytest
import sympy
import torch
from max.dtype import DType
from max.graph import DeviceRef, Dim, Graph, Module, StaticDim, SymbolicDim, TensorType
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.utils._sympy import functions as symbolic

from tests.tracing import trace
from torch_max_backend.dims import (
    dim_value,
    expression,
    named_sizes,
    static,
    to_dim,
    to_int_or_dim,
)
from torch_max_backend.errors import MaxBackendError
from torch_max_backend.graph_builder import build_graph
from torch_max_backend.options import MaxOptions
from torch_max_backend.symbolic_scalars import evaluate

a, b = sympy.symbols("a b", integer=True, positive=True)


def test_integers_and_symbols() -> None:
    assert to_dim(7) == StaticDim(7)
    assert to_dim(sympy.Integer(7)) == StaticDim(7)
    assert to_dim(a) == SymbolicDim("a")
    assert static(to_dim(7)) == static(7) == 7
    assert static(to_dim(a)) is None


def test_symints_of_fake_tensors() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    dynamic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 2)
    x = mode.from_tensor(torch.empty(5, 7), symbolic_context=dynamic)
    rows, columns = x.shape
    assert isinstance(expression(rows), sympy.Symbol)
    assert isinstance(to_int_or_dim(rows), SymbolicDim)
    assert to_dim(rows * columns) == to_dim(columns * rows)
    assert to_dim(rows + 3) == to_dim(rows) + 3
    assert to_int_or_dim(4) == 4 and isinstance(to_int_or_dim(4), int)
    assert expression(4) == sympy.Integer(4)


@pytest.mark.parametrize(
    "left, right",
    [
        (a * b, b * a),
        (a + b + 1, 1 + b + a),
        (2 * a - a, a),
        ((a + 1) ** 2, (a + 1) * (a + 1)),
        (symbolic.FloorDiv(a * 2 + b, 4), symbolic.FloorDiv(b + 2 * a, 4)),
    ],
)
def test_equal_expressions_give_equal_dims(left, right) -> None:
    assert to_dim(left) == to_dim(right)


@pytest.mark.parametrize(
    "expr, expected",
    [
        (a + 1, Dim("a") + 1),
        (a**3, Dim("a") * Dim("a") * Dim("a")),
        (symbolic.FloorDiv(a, 16), Dim("a") // 16),
        (symbolic.Mod(a, 3), Dim("a") - (Dim("a") // 3) * 3),
    ],
    ids=str,
)
def test_expressions(expr, expected) -> None:
    assert to_dim(expr) == expected


@pytest.mark.parametrize("expr", [sympy.sqrt(a), symbolic.OpaqueUnaryFn_sqrt(a), sympy.Max(a, b)])
def test_what_a_dim_cannot_hold_is_a_clear_error(expr) -> None:
    with pytest.raises(MaxBackendError, match=r"the size .* which a MAX dimension cannot express"):
        to_dim(expr)


def test_a_graph_has_one_symbol_for_a_sum_or_a_quotient() -> None:
    third = symbolic.FloorDiv(a, 3)
    rounded = symbolic.CeilToInt(symbolic.IntTrueDiv(a, sympy.Integer(2)))
    negated = -symbolic.FloorDiv(-a, sympy.Integer(2))  # rounds up; its factors are negative
    with (
        Graph("sizes", input_types=[TensorType(DType.float32, ("a", "b"), DeviceRef.CPU())]),
        named_sizes(lambda name: dim_value(Dim(name))),
    ):
        for expr in (third, third * b + 1, rounded, negated):
            assert isinstance(to_dim(expr), SymbolicDim)
            assert to_dim(expr) == to_dim(expr)
        assert len({to_dim(expr) for expr in (third, third * b + 1, rounded, negated)}) == 4
        assert to_dim(third * b) == to_dim(third) * Dim("b")
        assert to_dim(a) == Dim("a")


def test_sizes_as_values() -> None:
    with Graph("sizes", input_types=[TensorType(DType.float32, ("a", 3), DeviceRef.CPU())]):
        for size in (4, Dim("a"), Dim("a") * 2 + 1, Dim("a") // 2):
            value = dim_value(size)
            assert (value.dtype, value.rank) == (DType.int64, 0)
        assert dim_value(4, DType.float32).dtype == DType.float32


def test_symbolic_numbers_are_integers_where_they_are_integral() -> None:
    with Graph("numbers", input_types=[TensorType(DType.float32, ("a", "b"), DeviceRef.CPU())]):

        def kind(expr: sympy.Expr) -> DType:
            return evaluate(expr, lambda name: dim_value(Dim(name))).dtype

        assert kind(a * b + 1) == DType.int64
        assert kind(symbolic.FloorDiv(a, b)) == DType.int64
        assert kind(symbolic.TruncToInt(symbolic.IntTrueDiv(a, b))) == DType.int64
        assert kind(symbolic.IntTrueDiv(a, b)) == DType.float64
        assert kind(symbolic.ToFloat(a) * sympy.Float(0.5)) == DType.float64
        assert kind(symbolic.OpaqueUnaryFn_sqrt(a)) == DType.float64
        with pytest.raises(MaxBackendError, match="the symbolic number"):
            evaluate(symbolic.OpaqueUnaryFn_sin(a), lambda name: dim_value(Dim(name)))


def test_scores_of_a_square_grid_are_reshaped() -> None:
    """(batch, heads, n * n, n * n): MAX does not see that merging two axes keeps the others."""

    def attention(x: torch.Tensor) -> torch.Tensor:
        grid = x.unfold(2, 8, 8).unfold(3, 8, 8)  # (batch, 3, n, n, 8, 8)
        patches = grid.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        heads = patches.view(x.shape[0], patches.shape[1], 4, -1).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)

    # in float64 the scores are a tensor
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    graph_module = trace(attention, images, dynamic=True)
    graph, _ = build_graph(graph_module, Module(), "g0", MaxOptions())
    assert "rmo.reshape" in str(graph)
