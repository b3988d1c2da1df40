"""What stands between a new process and the first result, part by part.

    python -m benchmarks.startup [--model vit-s] [--rounds 5] [--cold]

Each turn is a process of its own: it imports torch, makes the model, imports what the contestant
needs (Dynamo, and MAX or Inductor), compiles the model for one input and calls it. The contestants
take turns. A first round fills the disk caches and is not counted; with --cold every turn has empty
caches of ours, MAX's and Inductor's instead. "Dynamo, then eager" is torch.compile with the backend
"eager": Dynamo's part, whichever backend follows. Parts are seconds, medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.environment import caches_below
from benchmarks.first_result import CONTESTANTS, FIRST, PHASES
from pretrained_models.comparison import positive_int, progress


def _in_a_process(model: str, contestant: str, environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_result", model, contestant],
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
    args = parser.parse_args(arguments)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(args.rounds + (not args.cold)):
            for contestant, rounds in measured.items():
                folder = Path(temporary) / contestant / str(turn if args.cold else "warm")
                found = _in_a_process(args.model, contestant, _environment(folder))
                progress(f"{contestant}: {FIRST} {found[FIRST]:.2f} s")
                if args.cold or turn > 0:
                    rounds.append(found)
    medians = {contestant: _medians(rounds) for contestant, rounds in measured.items()}
    names = list(medians["max"])
    lines = [
        [name, *(f"{found[name]:.2f}" if name in found else "" for found in medians.values())]
        for name in names
    ]
    rest = medians["max"][FIRST] - sum(medians["max"][name] for name in PHASES)
    lines.append(["Dynamo, the call", f"{rest:.2f}", *[""] * (len(medians) - 1)])
    print(f"{args.model}, {'cold' if args.cold else 'warm'}, seconds")
    alignment = ("left", *["right"] * len(medians))
    print(tabulate(lines, ["", *medians], disable_numparse=True, colalign=alignment))
    return 0


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, **caches_below(folder), "TORCH_MAX_BACKEND_PROFILE": "1"}


if __name__ == "__main__":
    sys.exit(main())
