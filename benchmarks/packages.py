"""Exported packages: size, time to load and to the first result, memory, runners, new weights.

    python -m benchmarks.packages [--models vit-s vit-l] [--rounds 5]

Each model is exported once, with a batch of 1 to 32, and loaded in processes of their own that
have no access to the compile cache. Times are medians of the rounds; memory is resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pretrained_models.comparison import positive_int, progress

BATCH = 32
CALLS = 4
"""Of each thread, where the throughput of runners is measured."""
NOT_NEEDED = ("vit", "torch._dynamo", "torch._inductor", "transformers")


def export_model(model_name: str, path: Path) -> dict[str, float]:
    """Seconds, and bytes of the package and of the weights."""
    import torch

    from benchmarks.cases import Case, make_input, make_model
    from torch_max_backend import export

    case = Case(model_name, 2, 224, "float32")
    model = make_model(case)
    start = time.perf_counter()
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=BATCH)}}
    export(model, (make_input(case),), path=path, dynamic_shapes=batch)
    return {
        "export": time.perf_counter() - start,
        "package": path.stat().st_size,
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
    }


def measure_here(path: Path) -> dict[str, float]:
    """What this process finds: seconds, bytes of memory, images per second."""
    import torch

    from benchmarks import resident
    from torch_max_backend import load

    x = torch.randn(1, 3, 224, 224)
    before = resident.now()
    found: dict[str, float] = {}
    start = time.perf_counter()
    model = load(path)
    found["load"] = time.perf_counter() - start
    model(x)
    found["first result"] = time.perf_counter() - start
    found["loaded"] = resident.peak() - before
    unwanted = [name for name in NOT_NEEDED if name in sys.modules]
    assert not unwanted, f"{unwanted} were imported"
    found["images/s, 1 thread"] = _throughput(load(path), threads=1)
    found["images/s, 4 threads"] = _throughput(load(path, num_runners=4), threads=4)
    found["calls with run"] = _peak_of_calls(model.run)
    found["calls with boxed_run"] = _peak_of_calls(model.boxed_run)
    state = {
        entry["name"]: torch.randn(entry["shape"])
        for entry in json.loads(model.get_metadata()["constants"])
    }
    start = time.perf_counter()
    model.load_constants(state)
    found["load_constants"] = time.perf_counter() - start
    return found


def _throughput(model: Callable[..., Any], threads: int) -> float:
    import torch

    x = torch.randn(1, 3, 224, 224)
    expected = model(x)
    wrong: list[int] = []

    def calls() -> None:
        for _ in range(CALLS):
            wrong.extend([] if torch.equal(model(x), expected) else [1])

    workers = [threading.Thread(target=calls) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong, "a thread got another result"
    return threads * CALLS / (time.perf_counter() - start)


def _peak_of_calls(run: Callable[[list[Any]], Any]) -> int:
    """Bytes above the start, at most, while batches follow each other."""
    import torch

    from benchmarks import resident

    resident.reset_peak()
    before = resident.now()
    for _ in range(CALLS):
        inputs = [torch.randn(BATCH, 3, 224, 224)]
        run(inputs)
    return resident.peak() - before


def _in_a_process(path: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "TORCH_MAX_BACKEND_CACHE_DIR": empty}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.packages", "--measure", str(path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="packages", description="Exported packages")
    parser.add_argument("--models", nargs="+", default=["vit-s", "vit-l"])
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.measure:
        print(json.dumps(measure_here(args.measure)))
        return 0
    columns: dict[str, dict[str, float]] = {}
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.max"
            progress(f"exporting {name}")
            made = export_model(name, path)
            rounds = []
            for _ in range(args.rounds):
                rounds.append(_in_a_process(path))
                progress(f"{name}: first result after {rounds[-1]['first result']:.2f} s")
        medians = {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}
        columns[name] = made | medians
    lines = [
        [_label(key), *(_shown(key, c[key]) for c in columns.values())] for key in columns[name]
    ]
    alignment = ("left", *["right"] * len(columns))
    print(tabulate(lines, ["", *columns], disable_numparse=True, colalign=alignment))
    return 0


_MEMORY = ("package", "weights", "loaded", "calls with run", "calls with boxed_run")


def _label(key: str) -> str:
    if key in _MEMORY:
        return f"{key}, MiB"
    return key if "images" in key else f"{key}, s"


def _shown(key: str, value: float) -> str:
    if key in _MEMORY:
        return f"{value / 2**20:.0f}"
    return f"{value:.1f}" if "images" in key else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
