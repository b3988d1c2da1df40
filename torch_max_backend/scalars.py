"""0-d constants whose numbers a lowering can read back and compute with.

MAX folds an operation on constants by compiling a kernel for it and running that: ten seconds for
the first one of a program. What is known while lowering is therefore computed while lowering.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, TensorValue, ops

Number: TypeAlias = bool | int | float

_known: ContextVar[dict[int, tuple[TensorValue, Number]]] = ContextVar("numbers by their value")


@contextmanager
def remembered_numbers() -> Iterator[None]:
    """Lets :func:`number_of` find the constants that a block makes."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def scalar(number: Number, dtype: DType, device: DeviceRef) -> TensorValue:
    """A 0-d constant."""
    value = ops.constant(number, dtype, device=device)
    if dtype == DType.float32:
        with np.errstate(over="ignore"):
            number = float(np.float32(number))
    if dtype in (DType.float32, DType.float64) or not dtype.is_float():
        _known.get({})[id(value)] = value, number
    return value


def number_of(value: TensorValue) -> Number | None:
    """What a constant made by :func:`scalar` holds; None for other values and for narrow floats."""
    return _known.get({}).get(id(value), (None, None))[1]


def cast_scalar(value: TensorValue, dtype: DType) -> TensorValue:
    """A value in another dtype; a number stays one."""
    if value.dtype == dtype:
        return value
    number = number_of(value)
    if number is None or (isinstance(number, float) and not dtype.is_float()):
        return ops.cast(value, dtype)
    return scalar(number, dtype, value.device)
