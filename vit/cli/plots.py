"""Plots of ``vit benchmark``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch_max_backend.cli.output import progress
from torch_max_backend.replacing import replacing

COLOURS = {"max": "#d1495b", "eager": "#8d99ae", "inductor": "#2e4057"}
PLOTS = {
    "latency": ("latency_ms", "milliseconds a call"),
    "memory": ("memory_mb", "peak memory (MiB)"),
    "gflops": ("gflops", "GFLOP/s"),
    "throughput": ("images_per_second", "images per second"),
}


def tell_if_missing() -> None:
    """Says, before anything is measured, that there will be no plots without matplotlib."""
    if find_spec("matplotlib") is None:
        progress("no plots: matplotlib is not installed (pip install matplotlib)")


def write_plots(folder: Path, rows: Sequence[dict[str, Any]], formats: Sequence[str]) -> list[Path]:
    """Bars by case and backend, a plot for each of PLOTS; none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("agg")
    from matplotlib import pyplot

    keys = ("config_name", "batch_size", "image_size")
    cases = list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    width = 0.8 / len(backends)
    written = []
    for name, (field, label) in PLOTS.items():
        figure, axes = pyplot.subplots(figsize=(3 + 1.4 * len(cases), 4), layout="constrained")
        for place, backend in enumerate(backends):
            found = [row for row in rows if row["backend"] == backend]
            positions = [
                cases.index(tuple(row[key] for key in keys))
                + (place - (len(backends) - 1) / 2) * width
                for row in found
            ]
            bars = axes.bar(
                positions,
                [row[field] for row in found],
                width,
                label=backend,
                color=COLOURS.get(backend),
            )
            axes.bar_label(bars, fmt=_label, fontsize=7)
        names = [f"{config}\nbatch {batch}\n{image}" for config, batch, image in cases]
        axes.set_xticks(range(len(cases)), names)
        axes.set_ylabel(label)
        axes.set_title(f"{name}, {rows[0]['pass_mode']}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        for suffix in formats:
            path = folder / f"{name}.{suffix}"
            with replacing(path) as new:
                figure.savefig(new, format=suffix)
            written.append(path)
        pyplot.close(figure)
    return written


def _label(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
