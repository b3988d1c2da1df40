"""How a package's executable is called, as JSON: its graph's signature and what binds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from max.dtype import DType
from max.graph import DeviceRef, TensorType

from torch_max_backend.signature import (
    ArgumentOutput,
    Check,
    GraphInput,
    GraphSignature,
    NumberOutput,
    Output,
    RepeatedOutput,
    TensorOutput,
)
from torch_max_backend.size_trees import Tree, to_tree


@dataclass(frozen=True)
class CallSpec:
    """The call of an exported model.

    Args:
        signature: of the graph; sizes are trees.
        constants: the positions of the arguments that are weights, buffers and constants, by name.
        inputs: for each flat input of the user the position of its argument.
        fixed: flat inputs that are no tensors: their place and the one value they may have.
        outputs: for each flat output of the user its place in the graph's outputs.
        mutated: places of outputs that are new values of constants, by their names.
        mutated_inputs: and of outputs that are new values of the user's inputs.
        in_tree, out_tree: the pytrees, as torch's ``treespec_dumps`` writes them.
    """

    signature: GraphSignature
    constants: Mapping[str, int]
    inputs: tuple[int, ...]
    fixed: Mapping[int, Any]
    outputs: tuple[int, ...]
    mutated: Mapping[str, int]
    mutated_inputs: Mapping[int, int]
    in_tree: str
    out_tree: str

    def to_json(self) -> dict[str, Any]:
        signature = self.signature
        return {
            "inputs": [_input_to_json(bound) for bound in signature.inputs],
            "outputs": [_output_to_json(output) for output in signature.outputs],
            "symbols": {name: list(place) for name, place in signature.symbols.items()},
            "computed": signature.computed,
            "checks": [[to_tree(check.condition), check.message] for check in signature.checks],
            "constants": dict(self.constants),
            "user_inputs": list(self.inputs),
            "fixed_inputs": [[place, value] for place, value in self.fixed.items()],
            "user_outputs": list(self.outputs),
            "mutated_constants": dict(self.mutated),
            "mutated_inputs": [[i, place] for i, place in self.mutated_inputs.items()],
            "in_tree": self.in_tree,
            "out_tree": self.out_tree,
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> CallSpec:
        """Raises KeyError, TypeError, ValueError where something is missing or of a wrong kind."""
        signature = GraphSignature(
            inputs=[_input_from_json(entry) for entry in found["inputs"]],
            outputs=[_output_from_json(entry) for entry in found["outputs"]],
            symbols={name: (int(i), axis) for name, (i, axis) in found["symbols"].items()},
            computed=[str(name) for name in found["computed"]],
            checks=[Check(condition, str(message)) for condition, message in found["checks"]],
        )
        return CallSpec(
            signature,
            {str(name): int(place) for name, place in found["constants"].items()},
            tuple(map(int, found["user_inputs"])),
            {int(place): value for place, value in found["fixed_inputs"]},
            tuple(map(int, found["user_outputs"])),
            {str(name): int(place) for name, place in found["mutated_constants"].items()},
            {int(i): int(place) for i, place in found["mutated_inputs"]},
            str(found["in_tree"]),
            str(found["out_tree"]),
        )


def _input_to_json(bound: GraphInput) -> dict[str, Any]:
    return {
        "argument": bound.argument,
        "kind": bound.kind,
        "dtype": bound.type.dtype.name,
        "shape": [_plain(str(size)) for size in bound.type.shape],
        "gpu": None if bound.type.device.is_cpu() else bound.type.device.id,
        "symbol": bound.symbol,
    }


def _plain(size: str) -> int | str:
    return int(size) if size.isdigit() else size


def _input_from_json(entry: Mapping[str, Any]) -> GraphInput:
    if entry["kind"] not in ("tensor", "size", "number", "seed"):
        raise ValueError(f"an input of kind {entry['kind']!r}")
    device = DeviceRef.CPU() if entry["gpu"] is None else DeviceRef.GPU(int(entry["gpu"]))
    kind = TensorType(DType[entry["dtype"]], list(entry["shape"]), device)
    return GraphInput(int(entry["argument"]), entry["kind"], kind, symbol=entry["symbol"])


def _output_to_json(output: Output) -> dict[str, Any] | None:
    if isinstance(output, TensorOutput):
        return {
            "kind": "tensor",
            "shape": _trees(output.shape),
            "stride": _trees(output.stride),
            "offset": to_tree(output.offset),
            "order": output.order,
            "expanded": output.expanded,
        }
    if isinstance(output, ArgumentOutput):
        return {"kind": "argument", "argument": output.argument}
    if isinstance(output, RepeatedOutput):
        return {"kind": "repeated", "place": output.place}
    if isinstance(output, NumberOutput):
        return {"kind": "number", "value": to_tree(output.value)}
    return None


def _trees(sizes: Sequence[Any]) -> list[Tree]:
    return [to_tree(size) for size in sizes]


def _output_from_json(entry: Mapping[str, Any] | None) -> Output:
    if entry is None:
        return None
    if entry["kind"] == "tensor":
        order = entry["order"]
        return TensorOutput(
            None,
            tuple(entry["shape"]),
            tuple(entry["stride"]),
            entry["offset"],
            None if order is None else tuple(map(int, order)),
            tuple(map(int, entry["expanded"])),
        )
    if entry["kind"] == "argument":
        return ArgumentOutput(int(entry["argument"]))
    if entry["kind"] == "repeated":
        return RepeatedOutput(int(entry["place"]))
    if entry["kind"] == "number":
        return NumberOutput(entry["value"])
    raise ValueError(f"an output of kind {entry['kind']!r}")
