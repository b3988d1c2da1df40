"""What ``options={"freeze": True}`` took out of a graph: computed from the weights, once."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from torch_max_backend.errors import InputError

log = logging.getLogger(__name__)


class FrozenPart:
    """What was taken out of a graph, and what it came to.

    Args:
        gm: from the ``sources`` to as many tensors as the rest of the graph takes of them.
        sources: positions of the weights in the arguments of the whole graph.
        first: the position of the first result in the arguments of the rest.
    """

    def __init__(self, gm: GraphModule, sources: Sequence[int], first: int) -> None:
        self.sources = list(sources)
        self.first = first
        self._gm = gm
        self._frozen: tuple[list[_State], list[Tensor]] | None = None

    def values(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """What the ``sources`` come to, dense; computed where one of them is not what it was.

        Raises:
            InputError: PyTorch does not count the changes of a weight.
        """
        frozen = self._frozen  # read once: another thread may replace it meanwhile
        if frozen is not None:
            if all(state.is_of(weight) for state, weight in zip(frozen[0], weights, strict=True)):
                return frozen[1]
            log.warning("weights have changed: what freeze=True had computed of them is made anew")
        states = [_State(weight) for weight in weights]
        with torch.no_grad():
            values = [value.contiguous() for value in self._gm(*weights)]
        self._frozen = states, values
        return values


class _State:
    """What a weight was when it was frozen."""

    def __init__(self, weight: Tensor) -> None:
        if weight.is_inference():
            raise InputError(
                "freeze=True needs weights whose changes PyTorch counts; one of shape "
                f"{list(weight.shape)} was made under torch.inference_mode(). Make or load the "
                "model outside of it, or leave freeze out"
            )
        self._weight = weakref.ref(weight)
        self._layout = _layout_of(weight)

    def is_of(self, weight: Tensor) -> bool:
        return self._weight() is weight and self._layout == _layout_of(weight)


def _layout_of(weight: Tensor) -> tuple[Any, ...]:
    return weight._version, weight.data_ptr(), weight.dtype, weight.shape, weight.stride()
