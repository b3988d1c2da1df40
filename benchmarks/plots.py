"""Plots of a result file: latency bars, scaling with batch and resolution, cost per image.

python -m benchmarks.plots RESULTS.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Row, read
from torch_max_backend.replacing import replacing

COLOURS = {
    "max": "#d1495b",
    "max-freeze": "#e2858f",
    "max-package": "#8f2d3b",
    "eager": "#8d99ae",
    "inductor": "#2e4057",
    "inductor-max-autotune": "#66a182",
    "onnxruntime": "#edae49",
    "openvino": "#5c80bc",
}


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """SVG files beside the results; none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (pip install -e '.[bench]')", file=sys.stderr)
        return []
    matplotlib.use("svg")
    rows = [row for row in rows if row.median]
    written = []
    for model, dtype in sorted({(row.model, row.dtype) for row in rows}):
        chosen = [row for row in rows if (row.model, row.dtype) == (model, dtype)]
        written.append(_latency(folder, f"{model}, {dtype}", chosen))
        for axis, other in (("batch", "resolution"), ("resolution", "batch")):
            for fixed in sorted({getattr(row, other) for row in chosen}):
                line = [row for row in chosen if getattr(row, other) == fixed]
                if len({getattr(row, axis) for row in line}) > 1:
                    title = f"{model}, {dtype}, {other} {fixed}"
                    written.append(_scaling(folder, title, line, axis))
    return written


def _latency(folder: Path, title: str, rows: Sequence[Row]) -> Path:
    """Bars by batch and image size, with the quartiles, relative to the fastest."""
    cases = sorted({(row.resolution, row.batch) for row in rows})
    fastest = {
        case: min(row.median or 0.0 for row in rows if (row.resolution, row.batch) == case)
        for case in cases
    }
    names = [name for name in COLOURS if any(row.contestant == name for row in rows)]
    figure, axes = _axes(title, width=4 + 1.6 * len(cases))
    width = 0.8 / max(len(names), 1)
    for place, name in enumerate(names):
        by_case = {(row.resolution, row.batch): row for row in rows if row.contestant == name}
        found = [(i, by_case[case]) for i, case in enumerate(cases) if case in by_case]
        positions = [i + (place - (len(names) - 1) / 2) * width for i, _ in found]
        low, heights, high = (
            [getattr(row, key) / fastest[cases[i]] for i, row in found]
            for key in ("lower_quartile", "median", "upper_quartile")
        )
        errors = [
            [middle - end for middle, end in zip(heights, low, strict=True)],
            [end - middle for middle, end in zip(heights, high, strict=True)],
        ]
        axes.bar(positions, heights, width, yerr=errors, label=name, color=COLOURS[name])
    axes.set_xticks(range(len(cases)), [f"batch {b}\n{r} px" for r, b in cases])
    axes.set_ylabel("time of a call (fastest = 1)")
    return _save(folder, f"latency {title}", figure, axes)


def _scaling(folder: Path, title: str, rows: Sequence[Row], axis: str) -> Path:
    """Milliseconds per image over the batch or the resolution."""
    figure, axes = _axes(title)
    for name, colour in COLOURS.items():
        line = sorted(
            (row for row in rows if row.contestant == name), key=lambda row: getattr(row, axis)
        )
        if line:
            where = [getattr(row, axis) for row in line]
            low, middle, high = (
                [getattr(row, key) / row.batch * 1e3 for row in line]
                for key in ("lower_quartile", "median", "upper_quartile")
            )
            axes.plot(where, middle, "o-", label=name, color=colour)
            axes.fill_between(where, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    ticks = sorted({getattr(row, axis) for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images in a batch" if axis == "batch" else "pixels a side")
    axes.set_ylabel("milliseconds per image")
    return _save(folder, f"{axis} {title}", figure, axes)


def _axes(title: str, width: float = 8) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, 4), layout="constrained")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(folder: Path, name: str, figure: Any, axes: Any) -> Path:
    from matplotlib import pyplot

    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    path = folder / (name.replace(", ", "-").replace(" ", "-") + ".svg")
    with replacing(path) as new:
        figure.savefig(new, format="svg")
    pyplot.close(figure)
    return path


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m benchmarks.plots RESULTS.json", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    for written in write(path.parent, read(path)[1]):
        print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
