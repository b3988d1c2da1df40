"""Expressions of sizes as plain data: [function, *arguments], a symbol's name or a number.

A package stores them so; they are evaluated here, from a fixed list of functions, and never by
handing text of a file to Python.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import sympy

Tree: TypeAlias = int | float | bool | str | list[Any]

_MATH = (
    "acos",
    "asin",
    "atan",
    "cos",
    "cosh",
    "exp",
    "log",
    "log2",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda *terms: sum(terms),
    "Mul": lambda *factors: reduce(operator.mul, factors),
    "Pow": operator.pow,
    "PowByNatural": operator.pow,
    "FloatPow": operator.pow,
    "Max": max,
    "Min": min,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "IntTrueDiv": operator.truediv,
    "FloatTrueDiv": operator.truediv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "ModularIndexing": lambda a, b, c: (a // b) % c,
    "ToFloat": float,
    "TruncToInt": int,
    "TruncToFloat": lambda a: float(math.trunc(a)),
    "FloorToInt": math.floor,
    "CeilToInt": math.ceil,
    "RoundToInt": round,
    "RoundDecimal": round,
    "Equality": operator.eq,
    "Unequality": operator.ne,
    "StrictLessThan": operator.lt,
    "LessThan": operator.le,
    "StrictGreaterThan": operator.gt,
    "GreaterThan": operator.ge,
    "And": lambda *terms: all(terms),
    "Or": lambda *terms: any(terms),
    "Not": operator.not_,
    **{f"OpaqueUnaryFn_{name}": getattr(math, name) for name in _MATH},
}
"""What torch calls the functions of sizes, in Python."""


def to_tree(expr: int | float | sympy.Basic) -> Tree:
    """A number or a sympy expression as data.

    Raises:
        ValueError: a function that has no place in a package.
    """
    import sympy

    if not isinstance(expr, sympy.Basic):
        return expr
    if isinstance(expr, sympy.Symbol):
        return expr.name
    if expr.is_Boolean and not expr.args:
        return bool(expr)
    if expr.is_number:
        return int(expr) if expr.is_integer else float(expr)
    name = type(expr).__name__
    if name not in FUNCTIONS:
        raise ValueError(f"{expr}: a package cannot hold the function {name} of sizes")
    return [name, *map(to_tree, expr.args)]


def evaluate(tree: Tree, values: Mapping[str, int | float]) -> Any:
    """The value of an expression, given those of its symbols.

    Raises:
        ValueError: not a tree, a function that is not in the list, or an unknown symbol.
    """
    if isinstance(tree, str):
        if tree not in values:
            raise ValueError(f"unknown symbol {tree!r}")
        return values[tree]
    if not isinstance(tree, list):
        return tree
    name, *arguments = tree
    if not isinstance(name, str) or name not in FUNCTIONS:
        raise ValueError(f"unknown function {name!r}")
    return FUNCTIONS[name](*(evaluate(argument, values) for argument in arguments))


def tree_function(tree: Tree, names: Sequence[str]) -> Callable[..., Any]:
    """``evaluate`` as a function of the symbols' values in the order of their names."""
    return lambda *values: evaluate(tree, dict(zip(names, values, strict=True)))


def number_function(expr: Any, names: Sequence[str]) -> Callable[..., Any]:
    """A function of the symbols' values, in the order of their names, that evaluates an expression
    of sizes: a number, a sympy expression or, from a package, a tree."""
    if isinstance(expr, list | str):
        return tree_function(expr, names)
    if isinstance(expr, int | float):
        return lambda *values: expr
    import sympy  # half of what importing this package for ``load`` would take

    if expr.is_number:
        constant = int(expr) if expr.is_integer else float(expr)
        return lambda *values: constant
    plain = expr.subs({symbol: sympy.Symbol(symbol.name) for symbol in expr.free_symbols})
    return sympy.lambdify([*map(sympy.Symbol, names)], plain, modules=[FUNCTIONS, "math"])
