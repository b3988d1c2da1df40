"""How arguments are bound and results described; needs no MAX compile."""

import math

import pytest
import sympy
import torch
from max.dtype import DType
from torch.utils._sympy import functions as symbolic

from tests.tracing import trace
from torch_max_backend import MaxBackendError
from torch_max_backend.signature import (
    ArgumentOutput,
    NumberOutput,
    RepeatedOutput,
    TensorOutput,
)
from torch_max_backend.signature_reading import read_signature
from torch_max_backend.size_trees import number_function


def signature(function, *args, dynamic=False):
    return read_signature(trace(function, *args, dynamic=dynamic))


def described(bound):
    """(argument, kind, dtype, rank) of an input."""
    return bound.argument, bound.kind, bound.type.dtype, len(bound.type.shape)


# ------------------------------------------------------------------------------------- inputs


def test_tensors_are_bound_in_their_order():
    s = signature(lambda x, y: x.sum() + y, torch.randn(2, 3), torch.arange(4, dtype=torch.int32))
    assert [described(b) for b in s.inputs] == [
        (0, "tensor", DType.float32, 2),
        (1, "tensor", DType.int32, 1),
    ]
    assert [[int(d) for d in b.type.shape] for b in s.inputs] == [[2, 3], [4]]
    assert s.symbols == {}


def test_a_tensor_that_only_comes_back_is_not_bound():
    s = signature(lambda x, y: (x * 2, y), torch.randn(2), torch.randn(3))
    assert [b.argument for b in s.inputs] == [0]


def test_sizes_bound_by_a_tensor_need_no_input_of_their_own():
    s = signature(lambda x: x * x.shape[0], torch.randn(4, 6), dynamic=True)
    assert [b.kind for b in s.inputs] == ["tensor"]
    (bound,) = s.inputs
    assert len({str(d) for d in bound.type.shape}) == 2
    # each symbol is read from the axis it stands for, or from the int that torch passes beside it
    places = {position for position, _ in s.symbols.values()}
    assert len(s.symbols) == 2 and places


def test_one_symbol_for_equal_sizes():
    s = signature(lambda x, y: x + y, torch.randn(4), torch.randn(4), dynamic=True)
    shapes = [str(b.type.shape[0]) for b in s.inputs if b.kind == "tensor"]
    assert len(shapes) == 2 and len(set(shapes)) == 1
    assert len(s.symbols) == 1


def test_a_size_that_no_tensor_binds_is_carried_as_a_dimension():
    def function(x, n):
        torch._check(n >= 2)
        return x.expand(n, 3) * 2

    s = signature(function, torch.randn(1, 3), 7, dynamic=True)
    (carried,) = [b for b in s.inputs if b.kind == "size"]
    assert (carried.type.dtype, int(carried.type.shape[1])) == (DType.bool, 0)
    assert str(carried.type.shape[0]) in s.symbols
    assert s.symbols[str(carried.type.shape[0])] == (carried.argument, None)


def test_a_size_of_a_tensor_that_is_not_used_is_carried_too():
    """x's values are not needed, its size is: the tensor is not bound, its size still is."""
    s = signature(lambda x, y: y * x.shape[0], torch.randn(5), torch.randn(3), dynamic=True)
    kinds = [b.kind for b in s.inputs]
    assert kinds.count("tensor") == 1
    assert set(kinds) - {"tensor"}, "the size arrives some way"


@pytest.mark.parametrize(
    "value, dtype", [(5, DType.int64), (-5, DType.int64), (2.5, DType.float64)]
)
def test_numbers(value, dtype):
    s = signature(lambda x, n: x + n, torch.randn(3), value, dynamic=True)
    numbers = [b for b in s.inputs if b.kind == "number"]
    if isinstance(value, int):
        (bound,) = numbers
        assert bound.symbol is not None and (bound.type.dtype, bound.type.rank) == (dtype, 0)
        assert s.symbols[bound.symbol] == (bound.argument, None)
    else:  # torch passes a float as a 0-d tensor
        assert [b.type.dtype for b in s.inputs if b.type.rank == 0] == [dtype]


def test_randomness_adds_a_seed():
    assert [b.kind for b in signature(lambda x: x * 2, torch.randn(3)).inputs] == ["tensor"]
    s = signature(lambda x: x + torch.rand_like(x), torch.randn(3))
    assert [b.kind for b in s.inputs] == ["tensor", "seed"]
    assert s.inputs[1].argument == -1


# ------------------------------------------------------------------------------------ outputs


def kinds(function, *args, **kw):
    return [type(o) for o in signature(function, *args, **kw).outputs]


def test_an_argument_that_comes_back_is_returned_as_it_came():
    gm = trace(lambda x: (x.sin(),), torch.randn(3))
    (x,) = gm.graph.find_nodes(op="placeholder")
    (output,) = gm.graph.find_nodes(op="output")
    output.args = ((*output.args[0], x),)
    outputs = read_signature(gm).outputs
    assert outputs[1] == ArgumentOutput(0)


def test_a_result_that_repeats_is_the_same_object():
    gm = trace(lambda x: (x.sin(), x.cos()), torch.randn(3))
    (output,) = gm.graph.find_nodes(op="output")
    sine, cosine = output.args[0]
    output.args = ((sine, cosine, sine, None, cosine),)
    outputs = read_signature(gm).outputs
    assert [type(o) for o in outputs[:2]] == [TensorOutput, TensorOutput]
    assert outputs[2:] == [RepeatedOutput(0), None, RepeatedOutput(1)]


def test_numbers_among_the_results():
    gm = trace(lambda x: (x.sin(), x.shape[0] * 2), torch.randn(3), dynamic=True)
    (output,) = gm.graph.find_nodes(op="output")
    output.args = ((*output.args[0], 3, 2.5, True),)
    s = read_signature(gm)
    assert [o.value for o in s.outputs[-3:]] == [3, 2.5, True]
    dynamic = [o for o in s.outputs[:-3] if isinstance(o, NumberOutput)]
    for found in dynamic:
        assert number_function(found.value, list(s.symbols))(9) in (9, 18)


@pytest.fixture
def data_dependent():
    with torch._dynamo.config.patch(
        capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
    ):
        yield


def told_by_the_data(x, i):
    count = (x > 0).sum().item()
    torch._check(count < 5)
    return x[x > 1].unsqueeze(0).expand(2, -1), i.item(), count + x.shape[0]


def test_what_only_the_graph_can_tell_is_computed(data_dependent):
    signature = read_signature(trace(told_by_the_data, 2 * torch.eye(3, 4), torch.tensor(7)))
    _, second, third = signature.outputs
    (number,), (count,) = (output.value.free_symbols for output in (second, third))
    assert {number.name, count.name} <= set(signature.computed)
    assert not set(signature.computed) & signature.symbols.keys()
    checks = [
        check.condition for check in signature.checks if count in check.condition.free_symbols
    ]
    hold = [number_function(condition, [count.name]) for condition in checks]
    assert all(holds(4) for holds in hold)
    assert not all(holds(5) for holds in hold)


def test_computed_symbols_stand_in_their_order_of_appearance(data_dependent):
    def counts(x):
        return [(x > bound).sum().item() for bound in range(12)]

    signature = read_signature(trace(counts, torch.randn(3, 4)))
    results = [next(iter(output.value.free_symbols)).name for output in signature.outputs]
    assert signature.computed == results != sorted(results)


def test_a_view_at_a_place_that_only_a_run_can_tell_is_an_error(data_dependent):
    gm = trace(lambda x, i: torch.narrow(x, 1, i, 2), torch.randn(3, 4), torch.tensor(1))
    with pytest.raises(MaxBackendError, match=r"(?s)\.clone\(\).*source: .*test_signature.py"):
        read_signature(gm)


def test_a_result_of_no_known_kind_is_an_error():
    gm = trace(lambda x: (x.sin(),), torch.randn(3))
    (output,) = gm.graph.find_nodes(op="output")
    output.args[0][0].meta["val"] = "text"
    with pytest.raises(MaxBackendError, match="str"):
        read_signature(gm)


# ------------------------------------------------------------------------------- memory orders


def order_of(value):
    """(order, expanded) for a result with the strides of ``value``; through a traced graph."""
    gm = trace(lambda x: x.sin(), torch.randn(2))
    (output,) = gm.graph.find_nodes(op="output")
    output.args[0][0].meta["val"] = value
    (found,) = read_signature(gm).outputs
    return found.order, found.expanded


def strided(shape, stride):
    return torch.empty_strided(shape, stride, device="meta")


@pytest.mark.parametrize(
    "shape, stride, order, expanded",
    [
        ((2, 3, 4), (12, 4, 1), (0, 1, 2), ()),
        ((), (), (), ()),
        ((5,), (1,), (0,), ()),
        ((2, 3), (1, 2), (1, 0), ()),
        ((2, 3, 4), (1, 8, 2), (1, 2, 0), ()),
        ((2, 8, 4, 4), (128, 1, 32, 8), (0, 2, 3, 1), ()),  # channels last
        ((2, 3), (0, 1), (0, 1), (0,)),
        ((2, 3), (1, 0), (0, 1), (1,)),
        ((2, 3, 4), (0, 1, 3), (0, 2, 1), (0,)),
        ((2, 3), (0, 0), (0, 1), (0, 1)),
        ((1, 3), (99, 1), (0, 1), ()),  # the stride of one element means nothing
        ((3, 1), (1, 0), (0, 1), ()),
        ((0, 3), (3, 1), (0, 1), ()),
        ((0, 3), (7, 5), (0, 1), ()),
        ((2, 3), (6, 2), None, ()),  # every second element
        ((2, 3), (4, 1), None, ()),  # padded rows
        ((3, 3), (1, 1), None, ()),  # overlapping windows
        ((2, 2, 3), (3, 3, 1), None, ()),
        ((2, 3), (0, 2), None, (0,)),  # expanded, and with gaps
    ],
)
def test_memory_orders(shape, stride, order, expanded):
    found, axes = order_of(strided(shape, stride))
    if order is not None and found is not None:
        # axes that take no memory may stand anywhere
        axes_of = [[i for i in o if shape[i] != 1 and i not in expanded] for o in (found, order)]
        assert axes_of[0] == axes_of[1]
    else:
        assert found == order
    assert axes == expanded


@pytest.mark.parametrize("seed", range(20))
def test_every_permutation_is_dense_in_some_order(seed):
    """Random shapes and permutations: laying the axes out in the order gives the strides."""
    g = torch.Generator().manual_seed(seed)
    rank = int(torch.randint(1, 6, (), generator=g))
    shape = torch.randint(1, 5, (rank,), generator=g).tolist()
    axes = torch.randperm(rank, generator=g).tolist()
    value = torch.empty(shape, device="meta").permute(axes)
    order, expanded = order_of(value)
    assert order is not None and not expanded
    inverse = sorted(range(rank), key=order.__getitem__)
    again = torch.empty([value.shape[i] for i in order], device="meta").permute(inverse)
    matter = [i for i in range(rank) if value.shape[i] != 1]
    assert [again.stride(i) for i in matter] == [value.stride(i) for i in matter]


def test_symbolic_orders_are_proved_not_guessed():
    x = torch.randn(4, 6, 8)
    s = signature(lambda x: (x.sin().permute(2, 0, 1), x.cos()), x, dynamic=True)
    tensors = [o for o in s.outputs if isinstance(o, TensorOutput)]
    assert [o.order for o in tensors][-1] == (0, 1, 2)
    assert any(o.order != (0, 1, 2) for o in tensors) or len(tensors) == 2
    for output in tensors:
        assert all(isinstance(size, sympy.Expr) for size in output.shape)


# ------------------------------------------------------------------------------------ numbers

A, B = sympy.symbols("s0 s1", integer=True, positive=True)

EXPRESSIONS = {
    "symbol": (A, lambda a, b: a),
    "sum": (A + 3 * B, lambda a, b: a + 3 * b),
    "product": (A * B - 1, lambda a, b: a * b - 1),
    "square": (A**2, lambda a, b: a * a),
    "floor": (symbolic.FloorDiv(A, B), lambda a, b: a // b),
    "floor of negative": (symbolic.FloorDiv(-A, B), lambda a, b: -a // b),
    "clean": (symbolic.CleanDiv(A * B, B), lambda a, b: a),
    "mod": (symbolic.Mod(A, B), lambda a, b: a % b),
    "python mod": (symbolic.PythonMod(-A, B), lambda a, b: -a % b),
    "indexing": (symbolic.ModularIndexing(A, 2, 5), lambda a, b: a // 2 % 5),
    "true division": (symbolic.IntTrueDiv(A, B), lambda a, b: a / b),
    "float": (symbolic.ToFloat(A), lambda a, b: float(a)),
    "truncated": (symbolic.TruncToInt(symbolic.IntTrueDiv(-A, B)), lambda a, b: int(-a / b)),
    "floored": (symbolic.FloorToInt(symbolic.IntTrueDiv(-A, B)), lambda a, b: math.floor(-a / b)),
    "ceiled": (symbolic.CeilToInt(symbolic.IntTrueDiv(A, B)), lambda a, b: math.ceil(a / b)),
    "power": (symbolic.PowByNatural(A, sympy.Integer(3)), lambda a, b: a**3),
    "max": (symbolic.Max(A, B), max),
    "min": (symbolic.Min(A, 2 * B), lambda a, b: min(a, 2 * b)),
    "root": (symbolic.OpaqueUnaryFn_sqrt(symbolic.ToFloat(A)), lambda a, b: math.sqrt(a)),
    "rounded": (
        symbolic.RoundToInt(symbolic.IntTrueDiv(A, sympy.Integer(2))),
        lambda a, b: round(a / 2),
    ),
}


@pytest.mark.parametrize("kind", EXPRESSIONS)
def test_number_function(kind):
    expr, expected = EXPRESSIONS[kind]
    function = number_function(expr, ["s0", "s1"])
    for a, b in [(1, 1), (7, 2), (12, 4), (5, 9), (1023, 32)]:
        found = function(a, b)
        assert found == expected(a, b)
        assert type(found) is type(expected(a, b)), "ints stay ints"


@pytest.mark.parametrize("value", [3, 2.5, True, sympy.Integer(3), sympy.Float(2.5)])
def test_number_function_of_a_constant(value):
    found = number_function(value, ["s0"])(99)
    assert found == value
    assert type(found) in (int, float, bool)


def test_number_function_matches_symbols_by_name():
    """Assumptions make two sympy symbols of one name different; torch mixes them."""
    expr = sympy.Symbol("s1", integer=True) - sympy.Symbol("s0", positive=True)
    assert number_function(expr, ["s0", "s1"])(3, 10) == 7
