"""``vit benchmark components``: times of a model's parts, kept and compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from torch_max_backend.cli.output import first_line, format_option, progress, show, working
from torch_max_backend.replacing import replacing
from vit.cli.component_times import COMPONENTS, ComponentRun, measure_components
from vit.cli.parameters import FILE, Device, read_config

baseline_dir_option = click.option(
    "--baseline-dir", type=FILE, default="vit-component-baselines", show_default=True
)


@click.group()
def components() -> None:
    """Time a model's parts; save the times and compare with them later."""


@components.command()
@click.option("--config", type=FILE, required=True, help="YAML file of the model.")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True)
@click.option("--device", type=Device(), default="cpu", show_default=True)
@click.option("--backend", default="max", show_default=True, help="eager, inductor, max, ...")
@click.option("--components", "names", type=click.Choice(COMPONENTS), multiple=True)
@click.option("--warmup-iters", type=click.IntRange(0), default=5, show_default=True)
@click.option("--latency-iters", type=click.IntRange(1), default=50, show_default=True)
@click.option("--save", metavar="NAME", help="Keep the times as the baseline of this name.")
@baseline_dir_option
@format_option
def run(
    config: Path,
    batch_size: int,
    device: Any,
    backend: str,
    names: Sequence[str],
    warmup_iters: int,
    latency_iters: int,
    save: str | None,
    baseline_dir: Path,
    form: str,
) -> None:
    """Time the parts of a model in a forward pass, with inputs as they have in the model.

    Example: vit benchmark components run --config vit.yaml --batch-size 8 --save before
    """
    read_config(config)
    case = ComponentRun(
        config=str(config.resolve()),
        batch_size=batch_size,
        device=str(device),
        backend=backend,
        components=tuple(names) or COMPONENTS,
        warmup_iters=warmup_iters,
        latency_iters=latency_iters,
    )
    found = _measured(case)
    if save is not None:
        path = _baseline(baseline_dir, save)
        try:
            baseline_dir.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                new.write_text(json.dumps(found, indent=1))
        except OSError as error:
            raise click.ClickException(f"--save {save}: {error}") from None
        progress(f"saved as {path}")
    show(found, form, _run_text)


@components.command()
@click.argument("baseline")
@click.option("--current", metavar="NAME", help="Another baseline; without it the parts are timed.")
@click.option(
    "--threshold", type=click.FloatRange(0), default=5.0, show_default=True, help="Per cent."
)
@click.option(
    "--noise-floor", type=click.FloatRange(0), default=1.0, show_default=True, help="Per cent."
)
@click.option("--fail-on-regression", is_flag=True, help="Exit with 1 where a part regressed.")
@baseline_dir_option
@format_option
def compare(
    baseline: str,
    current: str | None,
    threshold: float,
    noise_floor: float,
    fail_on_regression: bool,
    baseline_dir: Path,
    form: str,
) -> None:
    """Compare the times of now, or of another baseline, with a baseline.

    A part regressed where its median is slower by the threshold or more; differences below the
    noise floor are none.

    Example: vit benchmark components compare before --fail-on-regression
    """
    before = _read(baseline_dir, baseline)
    if current is None:
        case = before["case"] | {"components": tuple(before["case"]["components"])}
        after = _measured(ComponentRun(**case))
    else:
        after = _read(baseline_dir, current)
    rows = compared(before["latency_ms"], after["latency_ms"], threshold, noise_floor)
    regressions = [row["component"] for row in rows if row["verdict"] == "regression"]
    show({"rows": rows, "regressions": regressions}, form, _compare_text)
    sys.exit(1 if regressions and fail_on_regression else 0)


@components.command("list-baselines")
@baseline_dir_option
@format_option
def list_baselines(baseline_dir: Path, form: str) -> None:
    """List the saved baselines.

    Example: vit benchmark components list-baselines
    """
    paths = sorted(baseline_dir.glob("*.json")) if baseline_dir.is_dir() else []
    found = [{"name": path.stem, **_read(baseline_dir, path.stem)["case"]} for path in paths]
    show({"baselines": found}, form, _list_text)


def compared(
    before: dict[str, float], after: dict[str, float], threshold: float, noise_floor: float
) -> list[dict[str, Any]]:
    """A row for each part that both have; changes in per cent of the time before."""
    rows = []
    for name in (name for name in before if name in after):
        change = (after[name] / before[name] - 1) * 100
        if abs(change) < noise_floor:
            verdict = "same"
        elif change >= threshold:
            verdict = "regression"
        else:
            verdict = "slower" if change > 0 else "faster"
        rows.append(
            {
                "component": name,
                "before_ms": before[name],
                "after_ms": after[name],
                "change_percent": change,
                "verdict": verdict,
            }
        )
    return rows


def _measured(case: ComponentRun) -> dict[str, Any]:
    """In a process of its own, so that a crash is a message."""
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    try:
        with working(f"timing {', '.join(case.components)} with {case.backend}"), pool:
            latency = pool.submit(measure_components, case).result()
    except BrokenProcessPool:
        raise click.ClickException("the process that ran the model died") from None
    except Exception as error:
        raise click.ClickException(first_line(error)) from None
    return {"case": asdict(case), "latency_ms": latency}


def _baseline(folder: Path, name: str) -> Path:
    if not name or Path(name).name != name or name.startswith("."):
        raise click.ClickException(f"{name!r} is no name of a baseline; use letters and digits")
    return folder / f"{name}.json"


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = _baseline(folder, name)
    try:
        content = json.loads(path.read_text())
        return {"case": dict(content["case"]), "latency_ms": dict(content["latency_ms"])}
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise click.ClickException(
            f"there is no baseline {name!r} in {folder} (there: {known}); make it with: "
            f"vit benchmark components run --config FILE --save {name}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{path} is no baseline: {error}; save it again") from None


def _run_text(content: dict[str, Any]) -> str:
    rows = [[name, f"{value:.3f}"] for name, value in content["latency_ms"].items()]
    return tabulate(rows, ["component", "ms"], disable_numparse=True, colalign=("left", "right"))


def _compare_text(content: dict[str, Any]) -> str:
    rows = [
        [
            row["component"],
            f"{row['before_ms']:.3f}",
            f"{row['after_ms']:.3f}",
            f"{row['change_percent']:+.1f} %",
            row["verdict"],
        ]
        for row in content["rows"]
    ]
    headers = ["component", "before, ms", "after, ms", "change", "verdict"]
    alignment = ("left", "right", "right", "right", "left")
    if not rows:
        return "the two have no component in common"
    return tabulate(rows, headers, disable_numparse=True, colalign=alignment)


def _list_text(content: dict[str, Any]) -> str:
    keys = ("name", "config", "batch_size", "device", "backend")
    rows = [[entry.get(key, "") for key in keys] for entry in content["baselines"]]
    return tabulate(rows, keys, disable_numparse=True) if rows else "no baselines"


def main() -> None:
    """The entry point of ``vit-component-benchmark``."""
    components(prog_name="vit-component-benchmark")
