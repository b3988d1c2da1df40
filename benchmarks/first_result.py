"""One process from its imports to a model's first result: what benchmarks.startup repeats.

    python -m benchmarks.first_result MODEL CONTESTANT

Nothing heavy is imported at the top: imports are measured.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pkgutil import resolve_name
from typing import Any

from benchmarks.timing import seconds

FIXED: dict[str, Any] = {"fullgraph": True, "dynamic": False}
COMPILE: dict[str, dict[str, Any] | None] = {
    "max": {"backend": "max"},
    "max, background": {"backend": "max", "options": {"compile": "background"}},
    "inductor": {"backend": "inductor"},
    "Dynamo, then eager": {"backend": "eager"},
    "eager": None,
}
CONTESTANTS = tuple(COMPILE)
IMPORTS = {
    "max": ("torch._dynamo", "torch_max_backend.max_backend"),
    "max, background": ("torch._dynamo", "torch_max_backend.max_backend"),
    "inductor": ("torch._dynamo", "torch._inductor.compile_fx"),
    "Dynamo, then eager": ("torch._dynamo",),
    "eager": (),
}
FIRST = "first result after imports"
PHASES = ("trace", "build", "cache", "compile", "load")


def measure(model_name: str, contestant: str) -> dict[str, float]:
    """The parts of this process's start, in seconds."""
    found = {"import torch": seconds(lambda: import_module("torch"))}
    import torch

    # before the model is made: a ViT of vit imports Dynamo
    found["other imports"] = seconds(lambda: [*map(resolve_name, IMPORTS[contestant])])

    from benchmarks.cases import Case, make_input, make_model

    case = Case(model_name, 1, 224, "float32")
    model, x = make_model(case), make_input(case)
    settings = COMPILE[contestant]

    def first_result() -> None:
        run = model if settings is None else torch.compile(model, **FIXED, **settings)
        with torch.no_grad():
            run(x)

    found[FIRST] = seconds(first_result)
    if contestant == "max":
        found |= _phases()
    return found


def _phases() -> dict[str, float]:
    """What the profile knows; "trace" is from the backend's call to the lowering, AOTAutograd's
    part, and 0 where the cache spares it; Dynamo is the rest."""
    from torch_max_backend import profiling

    totals = dict.fromkeys(PHASES, 0.0)
    for phases in profiling.timings().values():
        for name in PHASES:
            totals[name] += sum(phases.get(name, []))
    return totals


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])), flush=True)
