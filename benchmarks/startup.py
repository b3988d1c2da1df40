"""What stands between a new process and the first result, part by part.

    python -m benchmarks.startup [--model vit-s] [--rounds 5] [--cold]

Each round is a process of its own: it imports torch, makes the model, compiles it for one input and
calls it. The first fills the disk cache and is not counted; with --cold every round has an empty
cache of ours, and of MAX's, instead. Eager's and Inductor's first calls are measured the same way.
Parts are seconds, medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pretrained_models.comparison import positive_int, progress

FIXED: dict[str, Any] = {"fullgraph": True, "dynamic": False}
COMPILE: dict[str, dict[str, Any] | None] = {
    "max": {"backend": "max"},
    "max, background": {"backend": "max", "options": {"compile": "background"}},
    "inductor": {"backend": "inductor"},
    "eager": None,
}
CONTESTANTS = tuple(COMPILE)
PHASES = ("trace", "build", "cache", "compile", "load")


def measure_here(model_name: str, contestant: str) -> dict[str, float]:
    """The parts of this process's start, in seconds."""
    found = {}
    start = time.perf_counter()
    import torch

    found["import torch"] = time.perf_counter() - start
    from benchmarks.cases import Case, make_input, make_model

    case = Case(model_name, 1, 224, "float32")
    model, x = make_model(case), make_input(case)
    start = time.perf_counter()
    settings = COMPILE[contestant]
    run = model if settings is None else torch.compile(model, **FIXED, **settings)
    with torch.no_grad():
        run(x)
    found["first result"] = time.perf_counter() - start
    if contestant == "max":
        found |= _phases()
    return found


def _phases() -> dict[str, float]:
    """What the profile knows; "trace" is from the backend's call to the graph, AOTAutograd's part;
    Dynamo and the imports of both are the rest."""
    from torch_max_backend import profiling

    totals = dict.fromkeys(PHASES, 0.0)
    for phases in profiling.timings().values():
        for name in PHASES:
            totals[name] += sum(phases.get(name, []))
    return totals


def _in_a_process(model: str, contestant: str, environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", "--measure", contestant, "--model", model],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="startup", description="From a process to a result")
    parser.add_argument("--model", default="vit-s")
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--measure", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.measure:
        print(json.dumps(measure_here(args.model, args.measure)))
        return 0
    medians = {}
    for contestant in CONTESTANTS:
        rounds = []
        with tempfile.TemporaryDirectory() as warm:
            for _ in range(args.rounds + (not args.cold)):
                with tempfile.TemporaryDirectory() as fresh:
                    folder = Path(fresh if args.cold else warm)
                    rounds.append(_in_a_process(args.model, contestant, _environment(folder)))
                progress(f"{contestant}: first result after {rounds[-1]['first result']:.2f} s")
        medians[contestant] = _medians(rounds if args.cold else rounds[1:])
    names = list(medians["max"])
    lines = [
        [name, *(f"{found[name]:.2f}" if name in found else "" for found in medians.values())]
        for name in names
    ]
    rest = medians["max"]["first result"] - sum(medians["max"][name] for name in PHASES)
    lines.append(["Dynamo, imports, the call", f"{rest:.2f}", *[""] * (len(medians) - 1)])
    print(f"{args.model}, {'cold' if args.cold else 'warm'}, seconds")
    alignment = ("left", *["right"] * len(medians))
    print(tabulate(lines, ["", *medians], disable_numparse=True, colalign=alignment))
    return 0


def _environment(folder: Path) -> dict[str, str]:
    """All caches below one folder."""
    return {
        **os.environ,
        "TORCH_MAX_BACKEND_PROFILE": "1",
        "TORCH_MAX_BACKEND_CACHE_DIR": str(folder / "ours"),
        "MODULAR_CACHE_DIR": str(folder / "max"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }


if __name__ == "__main__":
    sys.exit(main())
