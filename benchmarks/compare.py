"""Two result files beside each other: what became slower beyond noise.

    python -m benchmarks.compare BASELINE.json NEW.json [--contestant max] [--threshold 0.05]

Times are taken relative to eager PyTorch in the same run, so that a slower machine is no
regression. A regression is a ratio of medians above the threshold whose quartiles do not overlap.
Exits with 1 when there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.results import Row, read

REFERENCE = "eager"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="compare", description="Two result files compared")
    parser.add_argument("baseline", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--contestant", default="max")
    parser.add_argument("--threshold", type=float, default=0.05)
    args = parser.parse_args(arguments)
    lines, regressions = compare(
        read(args.baseline)[1], read(args.new)[1], args.contestant, args.threshold
    )
    headers = ["model", "dtype", "image", "batch", "before", "now", "change", ""]
    print(f"{args.contestant}, in units of eager's median in the same run")
    print(tabulate(lines, headers, disable_numparse=True))
    if not lines:
        print(
            f"no case of both files has {REFERENCE} and {args.contestant} in each: "
            "run benchmarks.vit_inference with both contestants on the same cases",
            file=sys.stderr,
        )
    return 1 if regressions or not lines else 0


def compare(
    before: Sequence[Row], after: Sequence[Row], contestant: str, threshold: float
) -> tuple[list[list[str]], int]:
    """A line per common case, and how many of them are regressions."""
    old, new = _relative(before, contestant), _relative(after, contestant)
    lines, regressions = [], 0
    for case in old.keys() & new.keys():
        (low, median, high), (new_low, new_median, new_high) = old[case], new[case]
        change = new_median / median - 1
        verdict = ""
        if change > threshold and new_low > high:
            verdict = "SLOWER"
            regressions += 1
        elif change < -threshold and new_high < low:
            verdict = "faster"
        model, dtype, resolution, batch = case
        lines.append(
            [
                model,
                dtype,
                str(resolution),
                str(batch),
                f"{median:.3f}",
                f"{new_median:.3f}",
                f"{change:+.1%}",
                verdict,
            ]
        )
    return sorted(lines), regressions


def _relative(
    rows: Sequence[Row], contestant: str
) -> dict[tuple[str, str, int, int], tuple[float, float, float]]:
    """Lower quartile, median, upper quartile by case, in units of eager's median."""
    unit = {row.case: row.median for row in rows if row.contestant == REFERENCE}
    found = {}
    for row in rows:
        eager = unit.get(row.case)
        if row.contestant == contestant and row.median and eager:
            assert row.lower_quartile and row.upper_quartile
            found[row.case] = (
                row.lower_quartile / eager,
                row.median / eager,
                row.upper_quartile / eager,
            )
    return found


if __name__ == "__main__":
    sys.exit(main())
