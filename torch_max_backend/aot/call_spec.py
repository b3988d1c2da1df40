"""How a package's executable is called, as JSON: its graph's signature and what binds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch_max_backend.signature import GraphSignature
from torch_max_backend.signature_json import signature_from_json, signature_to_json


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
        return {
            **signature_to_json(self.signature),
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
        return CallSpec(
            signature_from_json(found),
            {str(name): int(place) for name, place in found["constants"].items()},
            tuple(map(int, found["user_inputs"])),
            {int(place): value for place, value in found["fixed_inputs"]},
            tuple(map(int, found["user_outputs"])),
            {str(name): int(place) for name, place in found["mutated_constants"].items()},
            {int(i): int(place) for i, place in found["mutated_inputs"]},
            str(found["in_tree"]),
            str(found["out_tree"]),
        )
