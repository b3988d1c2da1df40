"""Bound weights notice whatever makes their buffers wrong. Nothing is compiled here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from torch_max_backend.bound_weights import BoundWeights


def bound(tensors: list[torch.Tensor]) -> BoundWeights:
    return BoundWeights(tensors, buffers=[], copied=[], release=lambda _: None)


def weights() -> list[torch.Tensor]:
    return [nn.Parameter(torch.randn(6, 4)), torch.randn(6, 4), torch.zeros(0, 3)]


def test_values_may_change() -> None:
    tensors = weights()
    check = bound(tensors)
    assert check.are_valid_for(tensors)
    with torch.no_grad():
        tensors[0].mul_(2.0)
    assert check.are_valid_for(tensors)
    assert bound([]).are_valid_for([])


def test_values_of_frozen_ones_may_not() -> None:
    tensors = weights()
    check = BoundWeights(tensors, buffers=[], copied=[], release=lambda _: None, frozen=2)
    with torch.no_grad():
        tensors[0].mul_(2.0)
        assert check.are_valid_for(tensors)
        tensors[1].mul_(2.0)
        assert not check.are_valid_for(tensors)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(torch.clone, id="memory"),
        pytest.param(lambda data: data.view(4, 6), id="shape"),
        pytest.param(lambda data: data.as_strided((6, 4), (1, 6)), id="strides"),
        pytest.param(lambda data: data.view(torch.int32), id="dtype"),
        pytest.param(lambda data: data[:3], id="fewer rows"),
    ],
)
def test_memory_shape_strides_and_dtype_may_not(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    tensors = weights()
    check = bound(tensors)
    tensors[1] = change(tensors[1])
    assert not check.are_valid_for(tensors)
    assert bound(tensors).are_valid_for(tensors)


def test_a_parameter_given_other_data_is_noticed() -> None:
    tensors = weights()
    check = bound(tensors)
    tensors[0].data = tensors[0].data.view(4, 6)
    assert not check.are_valid_for(tensors)
