"""Comparisons, logic and choices between operands, with NaN as in IEEE 754.

MAX's ``<`` and ``<=`` are the negations of ``>=`` and ``>``, True for NaN, and its ``not_equal`` is
False for NaN.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable

from max.dtype import DType
from max.graph import TensorValue, ops

from torch_max_backend.ops.constants import constant
from torch_max_backend.scalars import number_of, scalar

Predicate = Callable[..., TensorValue]


def decided_by(test: Callable[..., bool]) -> Callable[[Predicate], Predicate]:
    """Makes the result of a predicate a constant where all its operands are numbers."""

    def decorate(predicate: Predicate) -> Predicate:
        @functools.wraps(predicate)
        def decided(*operands: TensorValue) -> TensorValue:
            numbers = [number_of(x) for x in operands]
            if None in numbers:
                return predicate(*operands)
            return scalar(test(*numbers), DType.bool, operands[0].device)

        return decided

    return decorate


@decided_by(operator.lt)
def less(x: TensorValue, y: TensorValue) -> TensorValue:
    """x < y; False where one is NaN."""
    return ops.greater(y, x)


@decided_by(operator.le)
def less_equal(x: TensorValue, y: TensorValue) -> TensorValue:
    """x <= y; False where one is NaN."""
    return greater_equal(y, x)


@decided_by(operator.eq)
def equal(x: TensorValue, y: TensorValue) -> TensorValue:
    """x == y; False where one is NaN."""
    return ops.logical_not(is_nan(x)) if x is y else ops.equal(x, y)


@decided_by(operator.ge)
def greater_equal(x: TensorValue, y: TensorValue) -> TensorValue:
    """x >= y; False where one is NaN."""
    return ops.logical_not(is_nan(x)) if x is y else ops.greater_equal(x, y)


@decided_by(operator.ne)
def not_equal(x: TensorValue, y: TensorValue) -> TensorValue:
    """x != y; True where one is NaN."""
    return ops.logical_not(equal(x, y))


@decided_by(math.isnan)
def is_nan(x: TensorValue) -> TensorValue:
    """True where NaN; integers have none."""
    return ops.is_nan(x) if x.dtype.is_float() else ops.not_equal(x, x)


@decided_by(math.isinf)
def is_inf(x: TensorValue) -> TensorValue:
    """True where infinite; integers never are."""
    return ops.is_inf(x) if x.dtype.is_float() else ops.not_equal(x, x)


def is_finite(x: TensorValue) -> TensorValue:
    """True where neither NaN nor infinite."""
    return ops.logical_not(ops.logical_or(is_nan(x), is_inf(x)))


@decided_by(lambda number: math.copysign(1, number) < 0)
def signbit(x: TensorValue) -> TensorValue:
    """True for negative numbers and -0.0."""
    zero = constant(0, x)
    return ops.logical_or(less(x, zero), less(constant(1, x) / x, zero))


def nonzero_bool(x: TensorValue) -> TensorValue:
    """True where x is not 0 (NaN counts)."""
    return x if x.dtype == DType.bool else not_equal(x, constant(0, x))


def logical_not(x: TensorValue) -> TensorValue:
    """True where x is 0."""
    return ops.logical_not(nonzero_bool(x))


def logical_and(x: TensorValue, y: TensorValue) -> TensorValue:
    """True where both are not 0."""
    return ops.logical_and(nonzero_bool(x), nonzero_bool(y))


def logical_or(x: TensorValue, y: TensorValue) -> TensorValue:
    """True where one is not 0."""
    return ops.logical_or(nonzero_bool(x), nonzero_bool(y))


def logical_xor(x: TensorValue, y: TensorValue) -> TensorValue:
    """True where exactly one is not 0."""
    return not_equal(nonzero_bool(x), nonzero_bool(y))


def _may_be_nan(x: TensorValue) -> bool:
    number = number_of(x)
    return x.dtype.is_float() and (number is None or math.isnan(number))


def maximum(x: TensorValue, y: TensorValue) -> TensorValue:
    """The larger; NaN wins (MAX ignores it)."""
    if x.dtype == DType.bool:
        return ops.logical_or(x, y)
    larger = ops.where(x > y, x, y)
    return ops.where(is_nan(x), x, larger) if _may_be_nan(x) else larger


def minimum(x: TensorValue, y: TensorValue) -> TensorValue:
    """The smaller; NaN wins."""
    if x.dtype == DType.bool:
        return ops.logical_and(x, y)
    smaller = ops.where(y > x, x, y)
    return ops.where(is_nan(x), x, smaller) if _may_be_nan(x) else smaller


def clamp(x: TensorValue, low: TensorValue | None, high: TensorValue | None) -> TensorValue:
    """min(max(x, low), high); NaN stays, and so does the sign of a zero at a bound of zero."""
    if x.dtype == DType.bool:
        x = x if low is None else ops.logical_or(x, low)
        return x if high is None else ops.logical_and(x, high)
    for bound, beyond in ((low, less), (high, ops.greater)):
        if bound is not None:
            replaced = beyond(x, bound)
            if _may_be_nan(bound):
                replaced = ops.logical_or(replaced, is_nan(bound))
            x = ops.where(replaced, bound, x)
    return x


def sign(x: TensorValue) -> TensorValue:
    """-1, 0 or 1."""
    if x.dtype == DType.bool:
        return x
    zero, one = constant(0, x), constant(1, x)
    negative = zero if x.dtype.is_unsigned_integral() else constant(-1, x)
    return ops.where(x > zero, one, ops.where(less(x, zero), negative, zero))
