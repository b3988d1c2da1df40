"""Symbolic sizes: torch SymInts (sympy expressions) to MAX Dims and to scalar values.

Equal sympy expressions give equal Dims: the builder rebinds every value to the Dims made here, so
that shapes agree however a lowering computed them.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TypeAlias

import sympy
import torch
from max.dtype import DType
from max.graph import Dim, StaticDim, TensorValue, ops
from torch.utils._sympy import functions as symbolic

from torch_max_backend.errors import MaxBackendError

IntLike: TypeAlias = int | Dim
_LARGEST_DENOMINATOR = 1 << 16


def expression(value: int | torch.SymInt) -> sympy.Expr:
    """The sympy expression of a size; the one place that reads a SymInt's node."""
    return value.node.expr if isinstance(value, torch.SymInt) else sympy.Integer(value)


def to_dim(value: int | torch.SymInt | sympy.Expr) -> Dim:
    """A size as a MAX Dim.

    Raises:
        MaxBackendError: the expression has a function that Dims cannot hold.
    """
    if isinstance(value, int):
        return Dim(value)
    if isinstance(value, torch.SymInt):
        value = expression(value)
    return _convert(value)


def to_int_or_dim(value: int | torch.SymInt) -> IntLike:
    """A python int where the size is static, else a Dim."""
    dim = to_dim(value)
    return int(dim) if isinstance(dim, StaticDim) else dim


def static(dim: IntLike) -> int | None:
    """The value of a static dim, None for a symbolic one."""
    if isinstance(dim, int):
        return dim
    return int(dim) if isinstance(dim, StaticDim) else None


def _convert(expr: sympy.Expr) -> Dim:
    if isinstance(expr, sympy.Integer):
        return Dim(int(expr))
    if isinstance(expr, sympy.Symbol):
        return Dim(expr.name)
    if isinstance(expr, sympy.Add):
        return _fold(expr.args, lambda a, b: a + b)
    if isinstance(expr, sympy.Mul):
        return _fold(expr.args, lambda a, b: a * b)
    if isinstance(expr, sympy.Pow | symbolic.PowByNatural):
        base, exponent = expr.args
        if isinstance(exponent, sympy.Integer) and exponent > 0:
            return _fold([base] * int(exponent), lambda a, b: a * b)
    if isinstance(expr, symbolic.FloorDiv | symbolic.CleanDiv):
        return _convert(expr.args[0]) // _convert(expr.args[1])
    if isinstance(expr, symbolic.Mod | symbolic.PythonMod):
        a, b = (_convert(arg) for arg in expr.args)
        return a - (a // b) * b
    if isinstance(expr, symbolic.CeilToInt | symbolic.TruncToInt | symbolic.FloorToInt):
        inner = _as_fraction(expr.args[0])
        if isinstance(inner, symbolic.IntTrueDiv):
            a, b = (_convert(arg) for arg in inner.args)
            ceil = isinstance(expr, symbolic.CeilToInt)
            return (a + b - 1) // b if ceil else a // b
    raise MaxBackendError(
        f"the size {expr} uses {type(expr).__name__}, which a MAX dimension cannot express; "
        "compile with dynamic=False or compute that size from products, sums and // alone"
    )


def _as_fraction(expr: sympy.Expr) -> sympy.Expr:
    """A size times a plain number, as resizing by a factor makes it, as a quotient of integers."""
    if not isinstance(expr, sympy.Mul) or len(expr.args) != 2:
        return expr
    numbers = [arg for arg in expr.args if isinstance(arg, sympy.Number)]
    sizes = [arg.args[0] for arg in expr.args if isinstance(arg, symbolic.ToFloat)]
    if len(numbers) != 1 or len(sizes) != 1:
        return expr
    factor = Fraction(float(numbers[0]))
    if factor.denominator > _LARGEST_DENOMINATOR or factor < 0:
        return expr
    return symbolic.IntTrueDiv(
        sizes[0] * sympy.Integer(factor.numerator), sympy.Integer(factor.denominator)
    )


def _fold(args, combine) -> Dim:
    dims = [_convert(arg) for arg in args]
    result = dims[0]
    for dim in dims[1:]:
        result = combine(result, dim)
    return result


def dim_value(dim: IntLike, dtype: DType = DType.int64) -> TensorValue:
    """A size as a scalar (0-d) int64 value on the host, cast to ``dtype``."""
    value = TensorValue(Dim(dim))
    return value if dtype == DType.int64 else ops.cast(value, dtype)
