"""``vit benchmark``: latency, memory and FLOP/s of models on several backends."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from torch_max_backend.cli.output import first_line, format_option, progress, show, working
from torch_max_backend.replacing import replacing
from vit.cli.components import components
from vit.cli.measuring import PASS_MODES, BenchmarkCase, measure_apart
from vit.cli.parameters import FILE, Device, read_config
from vit.cli.plots import tell_if_missing, write_plots


@click.group(invoke_without_command=True)
@click.option("--configs", type=FILE, multiple=True, help="YAML; repeatable.")
@click.option("--resolutions", type=click.IntRange(1), multiple=True, help="Square images.")
@click.option("--batch-size", type=click.IntRange(1), multiple=True, default=[1], show_default=True)
@click.option("--device", type=Device(), default="cpu", show_default=True)
@click.option("--pass-mode", type=click.Choice(PASS_MODES), default="forward", show_default=True)
@click.option("--backends", multiple=True, default=["eager", "inductor", "max"], show_default=True)
@click.option("--output-dir", type=FILE, default="vit-benchmark", show_default=True)
@click.option("--warmup-iters", type=click.IntRange(0), default=3, show_default=True)
@click.option("--latency-iters", type=click.IntRange(1), default=20, show_default=True)
@click.option("--memory-iters", type=click.IntRange(1), default=3, show_default=True)
@click.option("--plot-formats", multiple=True, default=["svg"], show_default=True)
@click.option("--no-plots", is_flag=True)
@format_option
@click.pass_context
def benchmark(
    context: click.Context,
    configs: Sequence[Path],
    resolutions: Sequence[int],
    batch_size: Sequence[int],
    device: Any,
    pass_mode: str,
    backends: Sequence[str],
    output_dir: Path,
    warmup_iters: int,
    latency_iters: int,
    memory_iters: int,
    plot_formats: Sequence[str],
    no_plots: bool,
    form: str,
) -> None:
    """Time models on several backends; write CSV, JSON and plots.

    Each case runs in a process of its own; one that fails is reported and skipped. Exits with 1
    where none succeeds.

    Example: vit benchmark --configs vit.yaml --batch-size 1 --batch-size 8 --backends max
    """
    if context.invoked_subcommand is not None:
        return
    if not configs:
        raise click.UsageError("Missing option '--configs'.")
    for path in configs:
        read_config(path)
    if not no_plots:
        tell_if_missing()
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    sizes: list[tuple[int, int] | None] = [(side, side) for side in resolutions] or [None]
    for config, size, batch, backend in itertools.product(configs, sizes, batch_size, backends):
        case = BenchmarkCase(
            config=config,
            batch_size=batch,
            image_size=size,
            pass_mode=pass_mode,
            backend=backend,
            device=str(device),
            warmup_iters=warmup_iters,
            latency_iters=latency_iters,
            memory_iters=memory_iters,
        )
        image = f" at {size[0]}" if size else ""
        name = f"{config.stem}, batch {batch}{image}, {pass_mode}, {backend}"
        try:
            with working(name):
                found = measure_apart(case)
        except BrokenProcessPool:
            failures.append({"case": name, "error": "the process died"})
        except Exception as error:
            failures.append({"case": name, "error": first_line(error)})
        else:
            rows.append(_row(case, found))
            progress(f"{name}: {found['latency_ms']:.2f} ms")
            continue
        progress(f"{name}: skipped: {failures[-1]['error']}")
    files = _write(output_dir, rows)
    if rows and not no_plots:
        files += write_plots(output_dir, rows, plot_formats)
    show({"rows": rows, "failures": failures, "files": [str(f) for f in files]}, form, _text)
    sys.exit(0 if rows else 1)


benchmark.add_command(components)


def _row(case: BenchmarkCase, found: dict[str, Any]) -> dict[str, Any]:
    height, width = case.model_config().img_size[-2:]
    return {
        "config_name": case.config.stem,
        "batch_size": case.batch_size,
        "image_size": f"{height}x{width}",
        "pass_mode": case.pass_mode,
        "backend": case.backend,
        **found,
        "images_per_second": case.batch_size / found["latency_ms"] * 1e3,
    }


def _text(content: dict[str, Any]) -> str:
    rows = [
        [f"{value:.2f}" if isinstance(value, float) else value for value in row.values()]
        for row in content["rows"]
    ]
    headers = list(content["rows"][0]) if rows else []
    skipped = [f"skipped: {entry['case']}: {entry['error']}" for entry in content["failures"]]
    written = [f"wrote {file}" for file in content["files"]]
    table = [tabulate(rows, headers, disable_numparse=True)] if rows else []
    return "\n".join([*table, *skipped, *written])


def _write(folder: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """``results.json`` and ``results.csv``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name in ("results.json", "results.csv"):
            with replacing(folder / name) as new, new.open("w", newline="") as file:
                if name.endswith("json"):
                    json.dump(list(rows), file, indent=1)
                elif rows:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
            written.append(folder / name)
    except OSError as error:
        raise click.ClickException(f"--output-dir {folder}: {error}") from None
    return written


def main() -> None:
    """The entry point of ``vit-benchmark``."""
    benchmark(prog_name="vit-benchmark")
