"""Two result files beside each other: what became slower beyond noise.

    python -m benchmarks.compare BASELINE.json NEW.json [--contestant max] [--threshold 0.05]

Times are taken relative to those of the other libraries that both runs have (their geometric mean),
so that a slower machine is no regression. A regression is a ratio of medians above the threshold
whose quartiles do not overlap; those of the other libraries widen them, since a process of eager
PyTorch may be 15 % slower than the one of another day. Exits with 1 when there is one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.results import Row, read

Case = tuple[str, str, int, int]
OURS = "max"
"""What names of contestants that run this project's code begin with."""


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
    print(f"{args.contestant}, in units of the other libraries' times in the same run")
    print(tabulate(lines, headers, disable_numparse=True))
    if not lines:
        print(
            f"no case of both files has {args.contestant} and another library: run benchmarks."
            f"vit_inference with --contestants {args.contestant} eager on the same cases",
            file=sys.stderr,
        )
    return 1 if regressions or not lines else 0


def compare(
    before: Sequence[Row], after: Sequence[Row], contestant: str, threshold: float
) -> tuple[list[list[str]], int]:
    """A line per common case, and how many of them are regressions."""
    old, new = _by_case(before), _by_case(after)
    lines, regressions = [], 0
    for case in sorted(old.keys() & new.keys()):
        common = old[case].keys() & new[case].keys()
        others = [name for name in common if name != contestant and not name.startswith(OURS)]
        if contestant not in common or not others:
            continue
        low, median, high = _relative(old[case], contestant, others)
        new_low, new_median, new_high = _relative(new[case], contestant, others)
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
    return lines, regressions


def _by_case(rows: Sequence[Row]) -> dict[Case, dict[str, Row]]:
    """The contestants that were timed."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        if row.median:
            found.setdefault(row.case, {})[row.contestant] = row
    return found


def _relative(
    rows: dict[str, Row], contestant: str, others: Sequence[str]
) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile in units of the others' times."""
    low, median, high = _quartiles(rows[contestant])
    unit = zip(*(_quartiles(rows[name]) for name in others), strict=True)
    unit_low, unit_median, unit_high = map(statistics.geometric_mean, unit)
    return low / unit_high, median / unit_median, high / unit_low


def _quartiles(row: Row) -> tuple[float, float, float]:
    assert row.lower_quartile and row.median and row.upper_quartile
    return row.lower_quartile, row.median, row.upper_quartile


if __name__ == "__main__":
    sys.exit(main())
