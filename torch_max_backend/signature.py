"""What goes in and out of a compiled graph: how arguments are bound and results are made.

Plain data, and picklable but for the FX nodes it points at: a package needs no more to be called.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from max.graph import TensorType, TensorValue, ops
from torch.fx import Node


@dataclass(frozen=True)
class GraphInput:
    """One input of the MAX graph.

    Args:
        argument: the position in the arguments of the call; -1 for the seed.
        kind: ``"tensor"``; ``"size"``, an int >= 0 passed as an empty (n, 0) tensor that binds a
            dimension; ``"number"``, an int or float passed as a 0-d int64 or float64 tensor;
            ``"seed"``, drawn at each call from torch's default generator.
        type: its MAX type.
        node: the placeholder of a tensor.
        symbol: the name of the symbol that a number stands for.
    """

    argument: int
    kind: str
    type: TensorType
    node: Node | None = None
    symbol: str | None = None


@dataclass(frozen=True)
class TensorOutput:
    """A result computed by the graph.

    The graph returns it dense, in the order of its strides and with expanded axes cut to one;
    ``shape``, ``stride`` and ``offset`` (evaluated per call where symbolic) describe what the
    caller sees. ``order`` lists the axes from the outermost stride to the innermost; None asks for
    a copy into the exact strides and offset, which no dense buffer has. (AOTAutograd makes a view
    of an argument anew from these three.) In a package there is no ``node``.
    """

    node: Node | None
    shape: tuple[Any, ...]
    stride: tuple[Any, ...]
    offset: Any
    order: tuple[int, ...] | None
    expanded: tuple[int, ...]

    def arrange(self, value: TensorValue) -> TensorValue:
        """Inside the graph: cut expanded axes, put the axes in memory order."""
        if self.expanded:
            value = value[
                tuple(slice(0, 1) if i in self.expanded else slice(None) for i in range(value.rank))
            ]
        if self.order is not None and list(self.order) != sorted(self.order):
            value = ops.permute(value, list(self.order))
        return value


@dataclass(frozen=True)
class ArgumentOutput:
    """A result that is an argument of the call, returned as it came."""

    argument: int


@dataclass(frozen=True)
class RepeatedOutput:
    """A result that stands at an earlier place too: the same tensor object is returned."""

    place: int


@dataclass(frozen=True)
class NumberOutput:
    """An int or float computed from the sizes: a constant or a function of the symbols."""

    value: Any


@dataclass(frozen=True)
class Check:
    """What must hold of numbers that only a run can tell, as ``torch._check`` states it."""

    condition: Any
    message: str


Output = TensorOutput | ArgumentOutput | RepeatedOutput | NumberOutput | None


@dataclass
class GraphSignature:
    """How a graph is called.

    Args:
        inputs: the inputs of the MAX graph.
        outputs: the results of the call.
        symbols: where each symbol is read: (argument, axis) or (argument, None).
        computed: the symbols that only the graph can tell (``.item()``, ``nonzero``) and that
            ``outputs`` or ``checks`` speak of; it returns them as 0-d tensors after the tensors.
        checks: conditions on computed symbols.
    """

    inputs: list[GraphInput] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    symbols: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def input_types(self) -> list[TensorType]:
        return [bound.type for bound in self.inputs]

    def results(self) -> int:
        """How many tensors the graph returns."""
        tensors = [output for output in self.outputs if isinstance(output, TensorOutput)]
        return len(tensors) + len(self.computed)
