"""A graph's signature as plain data: what a package and the compile cache keep of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def signature_to_json(signature: GraphSignature) -> dict[str, Any]:
    """Sizes become trees; the nodes are left out."""
    return {
        "inputs": [_input_to_json(bound) for bound in signature.inputs],
        "outputs": [_output_to_json(output) for output in signature.outputs],
        "symbols": {name: list(place) for name, place in signature.symbols.items()},
        "computed": signature.computed,
        "checks": [[to_tree(check.condition), check.message] for check in signature.checks],
    }


def signature_from_json(found: Mapping[str, Any]) -> GraphSignature:
    """Raises KeyError, TypeError, ValueError where something is missing or of a wrong kind."""
    return GraphSignature(
        inputs=[_input_from_json(entry) for entry in found["inputs"]],
        outputs=[_output_from_json(entry) for entry in found["outputs"]],
        symbols={name: (int(i), axis) for name, (i, axis) in found["symbols"].items()},
        computed=[str(name) for name in found["computed"]],
        checks=[Check(condition, str(message)) for condition, message in found["checks"]],
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
