"""Packages of one model beside each other: what a change of kernels or of the compiler brings.

    python -m benchmarks.by_turns BEFORE.max AFTER.max [MORE.max ...] [--rounds 40]

All are loaded into one process and called by turns on the same random inputs, so that whatever else
happens on the machine meets all of them: two copies of one package differ by 1 % while it is quiet
and by 3 % else, where processes beside each other differ by 10 %. Prints quantiles of the times in
milliseconds, and by how much each package is faster than the first one. Exits with 1 when results
differ by more than --tolerance times the largest number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.timing import seconds
from pretrained_models.comparison import positive_int, progress
from torch_max_backend import load

Call = Callable[[], Sequence[Any]]
SECONDS_A_TURN = 0.15
QUANTILES = {"fastest": 0, "tenth": 10, "quarter": 25, "median": 50}
"""Percent of calls that are faster. Noise only adds, so that the first ones are the steadiest."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="by_turns", description="Packages of one model, by turns")
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--rounds", type=positive_int, default=40)
    tolerance = "of results, beside the largest number; the default suits float32, 0.05 bfloat16"
    parser.add_argument("--tolerance", type=float, default=1e-4, help=tolerance)
    args = parser.parse_args(arguments)
    names = [path.name for path in args.packages]
    return compare(names, calls(args.packages), args.rounds, args.tolerance)


def calls(packages: Sequence[Path]) -> list[Call]:
    """Packages of one model, all on the same inputs."""
    models = [load(path) for path in packages]
    inputs = models[0].example_inputs()
    return [partial(model.run, inputs) for model in models]


def compare(
    names: Sequence[str],
    calls: Sequence[Call],
    rounds: int,
    tolerance: float,
    what: str = "package",
) -> int:
    """Prints the table; 1 where results differ by more than the tolerance."""
    first, *others = [call() for call in calls]
    differences = [largest_difference(first, other) for other in others]
    print(table(names, in_turns(calls, rounds), what))
    wrong = [d for d in differences if not d <= tolerance]  # NaN is wrong, too
    if wrong:
        progress(f"the results differ by {max(wrong):.1e} of the largest number")
    return 1 if wrong else 0


def largest_difference(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Of the tensors of two results, beside the largest number of the first."""
    found = [0.0]
    for a, b in zip(one, other, strict=True):
        if isinstance(a, torch.Tensor) and a.numel():
            a, b = a.double(), b.double()
            found.append(((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item())
    return torch.tensor(found).max().item()  # NaN where one is, unlike Python's


def in_turns(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each call."""
    count = max(2, round(SECONDS_A_TURN / seconds(calls[0])))
    times: list[list[float]] = [[] for _ in calls]
    for place in turns(len(calls), rounds):
        calls[place]()  # its weights come into the cache
        times[place] += [seconds(calls[place]) for _ in range(count)]
    return times


def turns(count: int, rounds: int) -> Iterator[int]:
    """Whose turn it is; the order is reversed from round to round."""
    for turn in range(rounds):
        yield from range(count)[:: -1 if turn % 2 else 1]


def table(names: Sequence[str], times: Sequence[Sequence[float]], what: str = "package") -> str:
    """A line each: quantiles in milliseconds, and how much faster than the first it is."""
    lines = []
    beside = _quantiles(times[0])
    for name, found in zip(names, map(_quantiles, times), strict=True):
        faster = (f"{a / b:.3f}" for a, b in zip(beside, found, strict=True))
        lines.append([name, *(f"{value * 1e3:.2f}" for value in found), *faster])
    headers = [what, *(f"{name} (ms)" for name in QUANTILES), *(f"x {n}" for n in QUANTILES)]
    alignment = ("left", *["right"] * 2 * len(QUANTILES))
    return tabulate(lines, headers, disable_numparse=True, colalign=alignment)


def _quantiles(times: Sequence[float]) -> list[float]:
    cuts = [min(times), *statistics.quantiles(times, n=100, method="inclusive")]
    return [cuts[percent] for percent in QUANTILES.values()]


if __name__ == "__main__":
    sys.exit(main())
