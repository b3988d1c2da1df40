"""Tensors and buffers over the same memory. Nothing is compiled here."""

from __future__ import annotations

import gc

import pytest
import torch
from max.driver import Buffer

from torch_max_backend.memory_sharing import buffer_of, is_shareable, tensor_of

DTYPES = [
    torch.bool,
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.mark.parametrize("shape", [(3, 4), (5,), (), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ways_keep_the_memory(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    shared = tensor_of(buffer_of(tensor))
    assert shared.dtype == dtype and shared.shape == shape
    assert shared.data_ptr() == tensor.data_ptr()
    assert torch.equal(shared.double(), tensor.double())


def test_the_buffer_is_what_max_makes_of_the_tensor_itself() -> None:
    tensor = torch.randn(2, 3)
    mine, theirs = buffer_of(tensor), Buffer.from_dlpack(tensor)
    assert (mine.dtype, mine.shape, mine.device) == (theirs.dtype, theirs.shape, theirs.device)
    assert mine._data_ptr() == theirs._data_ptr()


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.randn(3, 4).t(), id="strided"),
        pytest.param(torch.randn(1, 4).expand(3, -1), id="expanded"),
        pytest.param(torch.randn(1, dtype=torch.complex64).conj().imag, id="negative bit"),
    ],
)
def test_what_memory_does_not_hold_is_copied(tensor: torch.Tensor) -> None:
    assert not is_shareable(tensor)
    copy = tensor_of(buffer_of(tensor))
    assert torch.equal(copy, tensor)
    assert copy.data_ptr() != tensor.data_ptr()


def test_a_parameter_is_shared_and_may_die() -> None:
    parameter = torch.nn.Parameter(torch.randn(100_000))
    values = parameter.tolist()
    buffer = buffer_of(parameter)
    del parameter
    gc.collect()
    assert tensor_of(buffer).tolist() == values
