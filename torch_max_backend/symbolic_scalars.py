"""Symbolic numbers (SymFloat, and SymInts that are no size) as 0-d values inside a graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import sympy
from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops
from torch.utils._sympy import functions as symbolic

from torch_max_backend.errors import MaxBackendError
from torch_max_backend.scalars import cast_scalar, number_of, scalar


def evaluate(expr: sympy.Expr, symbol: Callable[[str], TensorValue]) -> TensorValue:
    """The value of an expression; int64 where it is integral, else float64, on the host.

    Raises:
        MaxBackendError: the expression holds a function without a translation.
    """

    def visit(e: sympy.Expr) -> TensorValue:
        if isinstance(e, sympy.Symbol):
            return symbol(e.name)
        if isinstance(e, sympy.Integer):
            return scalar(int(e), DType.int64, DeviceRef.CPU())
        if isinstance(e, sympy.Number):
            return scalar(float(e), DType.float64, DeviceRef.CPU())
        if isinstance(e, sympy.Piecewise):
            return _first_true([(visit(value), condition(c)) for value, c in e.args])
        args = [visit(arg) for arg in e.args]
        rule = _RULES.get(type(e))
        if rule is None:
            raise MaxBackendError(
                f"the symbolic number {expr} uses {type(e).__name__}, which has no translation to "
                "MAX; compile with dynamic=False or compute that number in another way"
            )
        result = args[0] if len(args) > 1 else rule(*args)
        for arg in args[1:]:
            result = rule(result, arg)
        return result

    def condition(e: sympy.Basic) -> TensorValue:
        if e in (sympy.true, sympy.false):
            return scalar(bool(e), DType.bool, DeviceRef.CPU())
        return visit(e)

    return visit(expr)


def _first_true(cases: list[tuple[TensorValue, TensorValue]]) -> TensorValue:
    """The value of the first case whose condition holds; the last one's holds always."""
    *others, (result, _) = cases
    for value, holds in reversed(others):
        result = _same(partial(ops.where, holds))(value, result)
    return result


def _real(x: TensorValue) -> TensorValue:
    return cast_scalar(x, DType.float64)


def _same(rule: Callable[..., TensorValue]) -> Callable[..., TensorValue]:
    def apply(a: TensorValue, b: TensorValue) -> TensorValue:
        return rule(a, b) if a.dtype == b.dtype else rule(_real(a), _real(b))

    return apply


def _floor_div(a: TensorValue, b: TensorValue) -> TensorValue:
    """floor(a / b) of sizes, which float64 holds; MAX's would fold the sign of a number b."""
    if not number_of(b):
        return ops.floor_div(a, b)
    return _integer(ops.floor(_quotient(_real(a), _real(b))))


def _quotient(a: TensorValue, b: TensorValue) -> TensorValue:
    """a / b of float64; whole where it is whole, which MAX's product with 1 / b may miss."""
    number = number_of(b)
    if not number:
        return ops.div(a, b)
    product = a * (1 / number)
    nearest = ops.round(product)
    return ops.where(ops.equal(nearest * b, a), nearest, product)


def _integer(x: TensorValue) -> TensorValue:
    return ops.cast(x, DType.int64)


_RULES: dict[type, Callable[..., TensorValue]] = {
    sympy.Add: _same(ops.add),
    sympy.Mul: _same(ops.mul),
    sympy.Pow: lambda a, b: ops.pow(_real(a), _real(b)),
    sympy.And: ops.logical_and,
    sympy.Or: ops.logical_or,
    sympy.Not: ops.logical_not,
    sympy.Eq: _same(ops.equal),
    sympy.Ne: _same(ops.not_equal),
    sympy.Ge: _same(ops.greater_equal),
    sympy.Gt: _same(ops.greater),
    sympy.Le: _same(lambda a, b: ops.greater_equal(b, a)),
    sympy.Lt: _same(lambda a, b: ops.greater(b, a)),
    sympy.Max: _same(ops.max),
    sympy.Min: _same(ops.min),
    symbolic.Max: _same(ops.max),
    symbolic.Min: _same(ops.min),
    symbolic.ToFloat: _real,
    symbolic.FloorDiv: _floor_div,
    symbolic.CleanDiv: _floor_div,
    symbolic.Mod: ops.mod,
    symbolic.PythonMod: ops.mod,
    symbolic.IntTrueDiv: lambda a, b: _quotient(_real(a), _real(b)),
    symbolic.FloatTrueDiv: lambda a, b: _quotient(_real(a), _real(b)),
    symbolic.FloatPow: lambda a, b: ops.pow(_real(a), _real(b)),
    symbolic.PowByNatural: lambda a, b: _integer(ops.pow(_real(a), _real(b))),
    symbolic.TruncToInt: lambda a: _integer(ops.trunc(_real(a))),
    symbolic.TruncToFloat: lambda a: ops.trunc(_real(a)),
    symbolic.FloorToInt: lambda a: _integer(ops.floor(_real(a))),
    symbolic.RoundToInt: lambda a: _integer(ops.round(_real(a))),
    symbolic.CeilToInt: lambda a: _integer(ops.negate(ops.floor(ops.negate(_real(a))))),
    symbolic.OpaqueUnaryFn_sqrt: lambda a: ops.sqrt(_real(a)),
}
