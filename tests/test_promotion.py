"""Type promotion against torch's own: every pair of dtypes as tensor, 0-d tensor and number."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from max.dtype import DType
from max.graph import DeviceRef, Dim, Graph, TensorType, TensorValue

from torch_max_backend.dtypes import to_max, to_torch
from torch_max_backend.promotion import (
    Promotion,
    accumulation_dtype,
    as_tensor,
    common_device,
    promoted_dtype,
    resolve,
)

DTYPES = [
    *[torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64],
    *[torch.float16, torch.bfloat16, torch.float32, torch.float64],
]
NUMBERS = [True, 3, 2.5]
KINDS = {"tensor": (2,), "0d": ()}


@pytest.fixture(scope="module")
def values() -> Iterator[dict[tuple[torch.dtype, str], TensorValue]]:
    """A graph value of every dtype and kind; nothing is compiled."""
    names = list(product(DTYPES, KINDS))
    types = [TensorType(to_max(dtype), KINDS[kind], DeviceRef.CPU()) for dtype, kind in names]
    with Graph("promotion", input_types=types) as graph:
        yield {name: value.tensor for name, value in zip(names, graph.inputs, strict=True)}


def torch_operand(dtype: torch.dtype, kind: str) -> torch.Tensor:
    return torch.ones(KINDS[kind], dtype=dtype)


@pytest.mark.parametrize("a", DTYPES, ids=str)
@pytest.mark.parametrize("b", DTYPES, ids=str)
def test_pairs_of_tensors(a, b, values) -> None:
    for left, right in product(KINDS, KINDS):
        expected = torch.result_type(torch_operand(a, left), torch_operand(b, right))
        got = to_torch(promoted_dtype([values[a, left], values[b, right]]))
        assert got == expected, f"{left} {a} with {right} {b}"


@pytest.mark.parametrize("number", NUMBERS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_with_numbers(dtype, number, values) -> None:
    for kind in KINDS:
        operand = torch_operand(dtype, kind)
        value = values[dtype, kind]
        assert to_torch(promoted_dtype([value, number])) == torch.result_type(operand, number)
        assert to_torch(promoted_dtype([number, value])) == torch.result_type(number, operand)


@pytest.mark.parametrize("a, b", list(product(NUMBERS, NUMBERS)))
def test_pairs_of_numbers(a, b) -> None:
    assert to_torch(promoted_dtype([a, b])) == torch.result_type(a, b)


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_numbers_follow_the_default_dtype(default, values) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        for dtype in (torch.int32, torch.bool, torch.float16):
            expected = torch.result_type(torch_operand(dtype, "tensor"), 2.5)
            assert to_torch(promoted_dtype([values[dtype, "tensor"], 2.5])) == expected
        assert to_torch(resolve([values[torch.int8, "0d"]], Promotion.INT_TO_FLOAT)[1]) == default
    finally:
        torch.set_default_dtype(before)


def test_sizes_count_as_integers(values) -> None:
    assert promoted_dtype([values[torch.float16, "tensor"], Dim("n")]) == DType.float16
    assert promoted_dtype([values[torch.bool, "tensor"], Dim("n")]) == DType.int64
    with pytest.raises(TypeError, match="at least one operand"):
        promoted_dtype([])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kind, function",
    [
        (Promotion.DEFAULT, lambda x: x + x),
        (Promotion.INT_TO_FLOAT, torch.sin),
        (Promotion.INT_TO_FLOAT, lambda x: x / x),
        (Promotion.ALWAYS_BOOL, lambda x: x == x),
    ],
)
def test_kinds_are_those_of_torchs_ops(dtype, kind, function, values) -> None:
    for shape in KINDS:
        expected = function(torch_operand(dtype, shape).to("meta")).dtype
        compute, result = resolve([values[dtype, shape]] * 2, kind)
        assert to_torch(result) == expected
        half = compute in (DType.float16, DType.bfloat16)
        assert not half, "half precision is computed in float32"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int_to_long_is_that_of_sums(dtype, values) -> None:
    _, result = resolve([values[dtype, "tensor"]], Promotion.INT_TO_LONG)
    assert to_torch(result) == torch.sum(torch_operand(dtype, "tensor").to("meta")).dtype


def test_accumulation() -> None:
    assert accumulation_dtype(DType.bfloat16) == accumulation_dtype(DType.float16) == DType.float32
    for dtype in (DType.float32, DType.float64, DType.int8, DType.bool):
        assert accumulation_dtype(dtype) == dtype


def test_as_tensor_casts_tensors_and_numbers(values) -> None:
    cpu = DeviceRef.CPU()
    x = values[torch.int32, "tensor"]
    assert as_tensor(x, DType.int32, cpu) is x
    assert as_tensor(x, DType.float64, cpu).dtype == DType.float64
    for number, dtype in product([True, 3, 2.5, -1.0], [DType.bool, DType.int8, DType.bfloat16]):
        value = as_tensor(number, dtype, cpu)
        assert (value.dtype, value.rank) == (dtype, 0)


def test_zero_rank_cpu_tensors_follow_the_others_device(values) -> None:
    types = [TensorType(DType.float32, (2,), DeviceRef.GPU(0))]
    with Graph("devices", input_types=types) as graph:
        (there,) = (value.tensor for value in graph.inputs)
        assert common_device([there, values[torch.float32, "0d"]]) == DeviceRef.GPU(0)
        assert common_device([values[torch.float32, "0d"], there]) == DeviceRef.GPU(0)
    assert common_device([values[torch.float32, "0d"], 2]) == DeviceRef.CPU()
    assert common_device([2, 3.0]) == DeviceRef.CPU()
