"""Buffers over a graph's weights: made once, valid while the weights lie in memory as they did."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C._dynamo.guards import TensorGuards


def _pointers_of(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [*map(torch.Tensor.data_ptr, tensors)]


def _metadata_check(tensors: Sequence[torch.Tensor]) -> Callable[..., bool]:
    """A function of as many tensors: whether each has the class, dtype, device, shape and strides
    of its predecessor here. Also false where autograd's or autocast's mode is another one.

    Dynamo's own check of tensors, which is private: asking each of 150 tensors for its shape,
    strides and dtype in Python takes a third of what a call costs beside MAX's.
    """
    guards = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    return guards.check


class BoundWeights:
    """Buffers over the weights, and all that must still hold of the weights for them to be valid.

    Dynamo's guards do not tell: they are skipped where a module's dictionary is unchanged. Never
    changed once made, so that threads need no lock. The buffers keep the memory of the tensors
    alive, so that ``release`` is called when one of the tensors dies.

    Args:
        buffers: one place for each input of the graph; None where it is bound at each call.
        copied: the inputs of weights that are not contiguous, hence copied at each call.
        frozen: how many tensors, the last ones, must hold the numbers that they held.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        buffers: list[Any],
        copied: list[int],
        release: Callable[[Any], None],
        frozen: int = 0,
    ) -> None:
        self.buffers = buffers
        self.copied = copied
        self._pointers = _pointers_of(tensors)
        self._same_metadata = _metadata_check(tensors)
        self.pointers = frozenset(self._pointers)
        self._first_frozen = len(tensors) - frozen
        self._versions = self._versions_of(tensors)
        self._owners = [weakref.ref(tensor, release) for tensor in tensors]

    def are_valid_for(self, tensors: Sequence[torch.Tensor]) -> bool:
        return (
            self._pointers == _pointers_of(tensors)
            and self._same_metadata(*tensors)
            and self._versions == self._versions_of(tensors)
        )

    def _versions_of(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        return [tensor._version for tensor in tensors[self._first_frozen :]]
