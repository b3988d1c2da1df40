"""``export(freeze=True)``: what depends on weights alone, computed before a package is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch.fx import GraphModule

from torch_max_backend.aot.call_spec import CallSpec
from torch_max_backend.freezing import freeze
from torch_max_backend.signature_reading import read_signature


def freeze_weights(
    gm: GraphModule, spec: CallSpec, constants: Mapping[str, torch.Tensor]
) -> tuple[CallSpec, dict[str, torch.Tensor]]:
    """The call and the constants of the graph that is left, weights packed; changes ``gm``. A
    buffer that the model changes stays as it is."""
    names = {place: name for name, place in spec.constants.items() if name not in spec.mutated}
    part = freeze(gm, list(names))
    if part is None:
        return spec, dict(constants)
    values = part.values([constants[names[place]] for place in part.sources])
    prefix = "frozen"
    while any(name.startswith(f"{prefix}.") for name in constants):  # a module of the model's
        prefix += "_"
    frozen = {f"{prefix}.{i}": value for i, value in enumerate(values)}
    places = {name: part.first + i for i, name in enumerate(frozen)}
    arguments = gm.graph.find_nodes(op="placeholder")
    kept = {
        name: place
        for name, place in spec.constants.items()
        if name in spec.mutated or arguments[place].users
    }
    spec = replace(spec, signature=read_signature(gm), constants=kept | places)
    return spec, {name: constants[name] for name in kept} | frozen
