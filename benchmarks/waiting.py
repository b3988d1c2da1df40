"""How long calls wait for a processor, by the time slices of MAX's workers.

    python -m benchmarks.waiting [--model vit-ti --dtype float32 --batch 1] [--slices 3 20]

The slices, in milliseconds, are set by turns in one process, whose calls follow each other. Prints,
for each, quantiles of the calls' times, what of it the calling thread was ready to run but did not
(``/proc/self/schedstat``), and how often a call put it to sleep. Linux only.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate

from benchmarks.cases import MODELS, PRECISIONS, Case, make_input
from benchmarks.contestants import torch_model
from benchmarks.timing import seconds
from pretrained_models.comparison import positive_int
from torch_max_backend.time_slices import max_workers, set_time_slice

CALLS = 12
WARM_UP = 3


class Measured(NamedTuple):
    """Of one call: milliseconds, and times it slept."""

    took: float
    waited: float
    slept: int


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="waiting", description="How long calls wait")
    parser.add_argument("--model", choices=MODELS, default="vit-ti")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32")
    parser.add_argument("--batch", type=positive_int, default=1)
    parser.add_argument("--slices", type=positive_int, nargs="+", default=[3, 20], metavar="MS")
    parser.add_argument("--rounds", type=positive_int, default=20)
    args = parser.parse_args(arguments)
    if sys.platform != "linux":
        raise SystemExit("waiting reads Linux's /proc/self/schedstat; this is another system")
    case = Case(args.model, args.batch, 224, args.dtype)
    x = make_input(case)
    run = torch.compile(torch_model(case), backend="max", fullgraph=True, dynamic=False)
    with torch.no_grad():
        run(x)
        print(table(by_slices(lambda: run(x), args.slices, args.rounds)))
    return 0


def by_slices(
    call: Callable[[], object], slices: Sequence[int], rounds: int
) -> dict[int, list[Measured]]:
    """Calls with workers' time slices of so many milliseconds."""
    found: dict[int, list[Measured]] = {length: [] for length in slices}
    for _ in range(rounds):
        for length, calls in found.items():
            for worker in max_workers():
                set_time_slice(worker, length * 1_000_000)
            for _ in range(WARM_UP):
                call()
            calls += [measure(call) for _ in range(CALLS)]
    return found


def measure(call: Callable[[], object]) -> Measured:
    """One call of this thread."""
    slept, waited = _sleeps(), _waited()
    took = seconds(call)
    return Measured(took * 1e3, (_waited() - waited) / 1e6, _sleeps() - slept)


def _waited() -> int:
    """Nanoseconds that the main thread has been ready to run and has not."""
    return int(Path(f"/proc/self/task/{os.getpid()}/schedstat").read_text().split()[1])


def _sleeps() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def table(found: dict[int, list[Measured]]) -> str:
    rows = []
    for length, calls in found.items():
        took = sorted(call.took for call in calls)
        quantiles = [took[len(took) * percent // 100] for percent in (0, 25, 50, 75)]
        waited = statistics.mean(call.waited for call in calls)
        rows.append([length, *quantiles, waited, statistics.mean(call.slept for call in calls)])
    names = ["slice (ms)", "fastest (ms)", "quarter", "median", "three quarters"]
    names += ["waited, mean (ms)", "slept"]
    return tabulate(rows, names, floatfmt=".2f")


if __name__ == "__main__":
    sys.exit(main())
