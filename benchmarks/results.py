"""Result files: one row per case and contestant, as JSON (with the environment) and CSV.

    python -m benchmarks.results RESULTS.json [--format github]

prints the tables of a file that was written before.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tabulate import tabulate

from torch_max_backend.replacing import replacing


@dataclass
class Row:
    """What one contestant did with one case. Times are seconds, memory bytes."""

    model: str
    batch: int
    resolution: int
    dtype: str
    contestant: str
    left_out: str | None = None
    failed: bool = False
    """it raised an error, or max's numbers are wrong"""
    prepare: float | None = None
    """compile or export, from the imports on; what the disk has is used"""
    first_result: float | None = None
    """a fresh process: from the imports to the first result, with what was prepared on disk"""
    times: list[float] = field(default_factory=list)
    median: float | None = None
    lower_quartile: float | None = None
    upper_quartile: float | None = None
    error: float | None = None
    """largest difference from eager float64"""
    rms_error: float | None = None
    """root of the mean square of all differences, steadier than the largest one"""
    peak_memory: int | None = None
    flops: int | None = None
    matmul_flops_per_second: float | None = None
    """the rate of this contestant's own matrix product in the same rounds"""

    def summarize(self, times: Sequence[float]) -> None:
        """Takes over the times of all rounds."""
        self.times = [round(t, 7) for t in times]
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
        self.lower_quartile, self.median, self.upper_quartile = quartiles

    @property
    def case(self) -> tuple[str, str, int, int]:
        return self.model, self.dtype, self.resolution, self.batch

    @property
    def share_of_matmul(self) -> float | None:
        """The rate of the model beside that of one large matrix product."""
        if not (self.flops and self.median and self.matmul_flops_per_second):
            return None
        return self.flops / self.median / self.matmul_flops_per_second


def write(folder: Path, environment: dict[str, Any], rows: Sequence[Row]) -> None:
    """``results.json`` and ``results.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment, "rows": [asdict(row) for row in rows]}, indent=1)
    with replacing(folder / "results.json") as new:
        new.write_text(text)
    names = [f.name for f in fields(Row) if f.name != "times"]
    with replacing(folder / "results.csv") as new, new.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The environment and the rows of a results.json."""
    content = json.loads(path.read_text())
    return content["environment"], [Row(**row) for row in content["rows"]]


def table(rows: Sequence[Row], ours: str = "max", format: str = "simple") -> str:
    """All rows, with the speed of ``ours`` relative to each.

    Args:
        format: one of tabulate's, such as ``"github"``.
    """
    own = {row.case: row.median for row in rows if row.contestant == ours}
    lines = []
    for row in rows:
        start = [row.model, row.dtype, row.batch, row.resolution, row.contestant]
        if row.left_out is not None:
            lines.append([*start, "left out"])
            continue
        median = own.get(row.case)
        lines.append(
            [
                *start,
                _milliseconds(row.median),
                f"{_milliseconds(row.lower_quartile)}-{_milliseconds(row.upper_quartile)}",
                _ratio(row.median / median if median and row.median else None),
                _milliseconds(row.median and row.median / row.batch),
                f"{row.first_result:.1f}" if row.first_result else "",
                f"{row.peak_memory / 2**20:.0f}" if row.peak_memory else "",
                *(f"{e:.1e}" if e is not None else "" for e in (row.error, row.rms_error)),
                _ratio(row.share_of_matmul),
            ]
        )
    headers = [
        "model",
        "dtype",
        "batch",
        "image",
        "contestant",
        "median (ms)",
        "quartiles (ms)",
        f"{ours} is faster by",
        "ms / image",
        "first result (s)",
        "peak (MiB)",
        "largest error",
        "RMS error",
        "share of matmul",
    ]
    alignment = ("left", "left", "right", "right", "left", *["right"] * 9)
    notes = {f"{row.contestant}: left out: {row.left_out}" for row in rows if row.left_out}
    return "\n".join(
        [
            tabulate(lines, headers, format, disable_numparse=True, colalign=alignment),
            *sorted(notes),
        ]
    )


def ratios(rows: Sequence[Row], ours: str = "max", format: str = "simple") -> str:
    """A line a case: the time of every other contestant as a multiple of ours, and our share of
    the rate of a large matrix product; then the geometric means over the models, which one
    disturbed case moves little.

    Args:
        format: one of tabulate's, such as ``"github"``.
    """
    cases: dict[tuple[str, str, int, int], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row.case, {})[row.contestant] = row
    others = [name for name in dict.fromkeys(row.contestant for row in rows) if name != ours]
    lines: list[list[Any]] = []
    alike: dict[tuple[str, int, int], list[list[float | None]]] = {}
    for (model, dtype, resolution, batch), found in cases.items():
        own = found.get(ours)
        if own is None or own.median is None:
            continue
        times = [found[name].median if name in found else None for name in others]
        numbers = [*(time and time / own.median for time in times), own.share_of_matmul]
        alike.setdefault((dtype, batch, resolution), []).append(numbers)
        start = [model, dtype, batch, resolution, _milliseconds(own.median)]
        lines.append([*start, *map(_ratio, numbers)])
    for group, of_models in alike.items():
        if len(of_models) > 1:
            means = [_ratio(_geometric_mean(column)) for column in zip(*of_models, strict=True)]
            lines.append(["geometric mean", *group, "", *means])
    headers = ["model", "dtype", "batch", "image", f"{ours} (ms)", *others, "share of matmul"]
    alignment = ("left", "left", *["right"] * (len(headers) - 2))
    return tabulate(lines, headers, format, disable_numparse=True, colalign=alignment)


def report(rows: Sequence[Row], format: str = "simple") -> str:
    """All rows and, where there is one, the table of ratios."""
    text = table(rows, format=format)
    if any(row.contestant == "max" for row in rows):
        text += f"\n\nThe time of each as a multiple of max's:\n\n{ratios(rows, format=format)}"
    return text


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.1f}"


def _ratio(number: float | None) -> str:
    return f"{number:.2f}" if number else ""


def _geometric_mean(numbers: Sequence[float | None]) -> float | None:
    """None where one is missing, as it then compares with nothing else."""
    present = [number for number in numbers if number]
    return statistics.geometric_mean(present) if len(present) == len(numbers) else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="results", description="The tables of a result file")
    parser.add_argument("file", type=Path)
    parser.add_argument("--format", choices=("simple", "github"), default="simple")
    args = parser.parse_args(arguments)
    print(report(read(args.file)[1], args.format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
