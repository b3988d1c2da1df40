"""Symbolic sizes: torch SymInts (sympy expressions) to MAX Dims and to scalar values.

Equal sympy expressions give equal Dims: the builder rebinds every value to the Dims made here, so
that shapes agree however a lowering computed them. MAX proves little about sums and quotients of
sizes, so within a graph each gets a symbol of its own; only products stay products, which is the
form that reshapes are proven by.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import numpy as np
import sympy
import torch
from max.dtype import DType
from max.graph import DeviceRef, Dim, StaticDim, SymbolicDim, TensorValue, ops
from torch.utils._sympy import functions as symbolic

from torch_max_backend.errors import MaxBackendError
from torch_max_backend.scalars import cast_scalar, scalar
from torch_max_backend.symbolic_scalars import evaluate

IntLike: TypeAlias = int | Dim


class _Names:
    """The symbols of one graph's sums and quotients."""

    def __init__(self, symbol: Callable[[str], TensorValue]) -> None:
        self.symbol = symbol
        self.dims: dict[sympy.Expr | Dim, Dim] = {}
        self.count = itertools.count()

    def fresh(self) -> Dim:
        """A symbol that no other size has; the op that takes it first declares it."""
        return Dim(f"size{next(self.count)}")

    def of_expression(self, expr: sympy.Expr) -> Dim:
        """The symbol of an expression, which must not be negative."""
        if expr not in self.dims:
            try:
                self.dims[expr] = self.of_dim(_algebraic(expr))
            except MaxBackendError:
                carrier = _range(evaluate(expr, self.symbol), self.fresh())
                self.dims[expr] = self._declare(carrier)
        return self.dims[expr]

    def of_dim(self, dim: Dim) -> Dim:
        """The symbol of a Dim of any form."""
        if dim not in self.dims:
            self.dims[dim] = self._declare(_carrier(dim))
        return self.dims[dim]

    def _declare(self, carrier: TensorValue) -> Dim:
        dim = self.fresh()
        ops.rebind(carrier, [dim, *list(carrier.shape)[1:]])  # unlike other ops never removed
        return dim


def _carrier(dim: Dim) -> TensorValue:
    """An empty tensor with that size."""
    empty = ops.constant(np.zeros((1, 0), np.bool_), DType.bool, device=DeviceRef.CPU())
    return ops.broadcast_to(empty, [dim, 0])


def _range(length: TensorValue, dim: Dim) -> TensorValue:
    host = DeviceRef.CPU()
    zero, one = (ops.constant(n, DType.int64, device=host) for n in (0, 1))
    return ops.range(zero, length, one, out_dim=dim, dtype=DType.int64, device=host)


def declare(name: str, value: TensorValue) -> None:
    """Makes a symbol of torch's, computed by the graph, a Dim: ``value`` is 0-d and at least 0."""
    ops.rebind(_range(value, new_symbol()), [Dim(name)])  # unlike other ops never removed


_names: ContextVar[_Names | None] = ContextVar("symbols of the graph being built", default=None)


@contextmanager
def named_sizes(symbol: Callable[[str], TensorValue]) -> Iterator[None]:
    """Names sums and quotients of sizes while a graph is being built.

    Args:
        symbol: the 0-d int64 value of a symbol of the graph.
    """
    token = _names.set(_Names(symbol))
    try:
        yield
    finally:
        _names.reset(token)


def expression(value: int | torch.SymInt) -> sympy.Expr:
    """The sympy expression of a size; the one place that reads a SymInt's node."""
    return value.node.expr if isinstance(value, torch.SymInt) else sympy.Integer(value)


def to_dim(value: int | torch.SymInt | sympy.Expr) -> Dim:
    """A size of a tensor as a MAX Dim.

    Raises:
        MaxBackendError: outside a graph, the expression has a function that Dims cannot hold.
    """
    if isinstance(value, int):
        return Dim(value)
    expr = expression(value) if isinstance(value, torch.SymInt) else value
    product = None if _is_negated(expr) else _product(expr, to_dim)
    if product is not None:
        return product
    names = _names.get()
    if names is None:
        return _algebraic(expr)
    return names.of_expression(expr)


def symbol_for(dim: Dim) -> Dim:
    """The dim itself where it is a number or a symbol, else a symbol of the same value."""
    names = _names.get()
    if names is None or isinstance(dim, StaticDim | SymbolicDim):
        return dim
    return names.of_dim(dim)


def known_as(dim: Dim) -> Dim:
    """The symbol that the graph has for a Dim, else the Dim itself."""
    names = _names.get()
    return dim if names is None else names.dims.get(dim, dim)


def new_symbol() -> Dim:
    """A symbol for a size that only a run can tell; the op that takes it declares it."""
    names = _names.get()
    assert names is not None, "sizes are named while a graph is being built"
    return names.fresh()


def to_int_or_dim(value: int | torch.SymInt) -> IntLike:
    """A bound or a count, negative ones included: a python int where it is static, else a Dim.

    Raises:
        MaxBackendError: the expression has a function that Dims cannot hold.
    """
    dim = _bound(expression(value))
    return int(dim) if isinstance(dim, StaticDim) else dim


def static(dim: IntLike) -> int | None:
    """The value of a static dim, None for a symbolic one."""
    if isinstance(dim, int):
        return dim
    return int(dim) if isinstance(dim, StaticDim) else None


def _product(expr: sympy.Expr, factor: Callable[[sympy.Expr], Dim]) -> Dim | None:
    """Numbers, symbols and products of ``factor``s."""
    if isinstance(expr, sympy.Integer):
        return Dim(int(expr))
    if isinstance(expr, sympy.Symbol):
        return Dim(expr.name)
    if isinstance(expr, sympy.Mul):
        return _fold([factor(arg) for arg in expr.args], lambda a, b: a * b)
    if isinstance(expr, sympy.Pow | symbolic.PowByNatural):
        base, exponent = expr.args
        if isinstance(exponent, sympy.Integer) and exponent > 0:
            return _fold([factor(base)] * int(exponent), lambda a, b: a * b)
    return None


def _is_negated(expr: sympy.Expr) -> bool:
    """-(-n // 2), as sympy writes a quotient that rounds up: its factors are no sizes."""
    return isinstance(expr, sympy.Mul) and any(arg.is_negative for arg in expr.args)


def _bound(expr: sympy.Expr) -> Dim:
    names = _names.get()
    if names is not None and expr in names.dims:
        return names.dims[expr]
    return _algebraic(expr)


def _algebraic(expr: sympy.Expr) -> Dim:
    """The expression in the algebra of Dims."""
    product = _product(expr, _bound)
    if product is not None:
        return product
    if isinstance(expr, sympy.Add):
        return _fold([_bound(arg) for arg in expr.args], lambda a, b: a + b)
    if isinstance(expr, symbolic.FloorDiv | symbolic.CleanDiv):
        return _bound(expr.args[0]) // _bound(expr.args[1])
    if isinstance(expr, symbolic.Mod | symbolic.PythonMod):
        a, b = (_bound(arg) for arg in expr.args)
        return a - (a // b) * b
    raise MaxBackendError(
        f"the size {expr} uses {type(expr).__name__}, which a MAX dimension cannot express; "
        "compile with dynamic=False or compute that size from products, sums and // alone"
    )


def _fold(dims: list[Dim], combine: Callable[[Dim, Dim], Dim]) -> Dim:
    result = dims[0]
    for dim in dims[1:]:
        result = combine(result, dim)
    return result


def dim_value(dim: IntLike, dtype: DType = DType.int64) -> TensorValue:
    """A size as a scalar (0-d) int64 value on the host, cast to ``dtype``."""
    number = static(dim)
    host = DeviceRef.CPU()
    value = TensorValue(Dim(dim)) if number is None else scalar(number, DType.int64, host)
    return cast_scalar(value, dtype)
