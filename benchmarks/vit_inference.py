"""Vision Transformers at inference: MAX beside eager PyTorch, Inductor, ONNX Runtime, OpenVINO.

    python -m benchmarks.vit_inference [--models vit-s ...] [--batches 1 8 32] [--resolutions 224]
                                       [--dtypes float32 bfloat16 int8] [--rounds 15]
                                       [--contestants max eager ...]
                                       [--output-dir benchmarks/results] [--resume]

Every contestant runs the same weights on the same input in a process of its own, on the same number
of threads. First each is prepared (compiled, exported) and that process ends; then all are loaded
from disk and timed in turns, round by round, so that a change of the machine's speed meets all of
them. Prints a table on stdout, progress on stderr, and writes results.json, results.csv and plots.
With --resume the cases that the folder's results.json has already, with all of the contestants and
without a failure, are not run again.
Exits with 1 when a contestant fails or max's numbers are wrong.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks import plots, results
from benchmarks.cases import (
    COMPARED,
    DTYPES,
    MODELS,
    PRECISIONS,
    Case,
    flops,
    images_in_precision,
    in_precision,
    make_input,
    make_model,
)
from benchmarks.contestants import CONTESTANTS
from benchmarks.environment import environment
from benchmarks.results import Row
from benchmarks.worker import MATMUL, Worker, WorkerError
from pretrained_models.comparison import agrees, positive_int, progress, reference_output

SECONDS_A_TURN = 1.0
"""A contestant's turn in a round takes about as long, whatever the size of the model."""
SECONDS_BETWEEN_TURNS = 0.3
"""Threads look for work in a loop before they sleep: MAX's workers for 0.15 s by default. Until
then the next contestant would share the processors with those of the one before."""
SLOW = 5.0
"""Seconds of a call beside which it is nothing that threads wake up: no untimed calls then."""
SECONDS_ENOUGH = 100.0
"""A contestant timed for as long sits out the rounds that are left: of calls of a minute, as those
in bfloat16 of PyTorch on processors without it, two tell enough."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    machine = environment()
    rows: list[Row] = []
    if args.resume:
        try:
            rows = _earlier(args.output_dir / "results.json", machine)
        except ValueError as error:
            progress(str(error))
            return 2
    for case in _cases(args):
        before = [row for row in rows if _case_of(row) == case]
        if _is_complete(before, args.contestants):
            progress(f"== {case}: done")
            continue
        progress(f"== {case}")
        rows = [row for row in rows if row not in before] + _run_case(case, args)
        results.write(args.output_dir, machine, rows)  # a long run leaves what it has
    for path in plots.write(args.output_dir, rows):
        progress(f"wrote {path}")
    print(results.report(rows))
    progress(f"wrote {args.output_dir / 'results.json'} and results.csv")
    return 1 if any(row.failed for row in rows) else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vit_inference", description="Vision Transformers at inference, runtimes compared"
    )
    names = {
        "models": (list(MODELS), COMPARED),
        "dtypes": (list(PRECISIONS), list(DTYPES)),
        "contestants": (list(CONTESTANTS), list(CONTESTANTS)),
    }
    for option, (choices, default) in names.items():
        parser.add_argument(f"--{option}", nargs="+", choices=choices, default=default)
    parser.add_argument("--batches", nargs="+", type=positive_int, default=[1, 8, 32])
    parser.add_argument("--resolutions", nargs="+", type=positive_int, default=[224])
    parser.add_argument("--rounds", type=positive_int, default=15)
    parser.add_argument("--threads", type=positive_int, default=torch.get_num_threads())
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    return parser.parse_args(arguments)


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    for model, dtype, resolution, batch in itertools.product(
        args.models, args.dtypes, args.resolutions, args.batches
    ):
        yield Case(model, batch, resolution, dtype)


def _earlier(path: Path, machine: dict[str, Any]) -> list[Row]:
    """The rows of an interrupted run; ``machine`` takes over its date and commit.

    Raises:
        ValueError: it ran on another machine, with other versions or settings.
    """
    if not path.exists():
        return []
    before, rows = results.read(path)
    for key, now in machine.items():
        if key not in ("date", "commit") and before.get(key) != now:
            raise ValueError(
                f"{path} was measured with {key} {before.get(key)}, here it is {now}: "
                "give another --output-dir, or leave out --resume"
            )
    machine["date"] = before["date"]
    if machine["commit"] not in (before["commit"] or "").split(", "):
        machine["commit"] = f"{before['commit']}, {machine['commit']}"
    return rows


def _case_of(row: Row) -> Case:
    return Case(row.model, row.batch, row.resolution, row.dtype)


def _is_complete(rows: Sequence[Row], contestants: Sequence[str]) -> bool:
    """Whether the rows of a case have every contestant, none of which failed."""
    return {*contestants} <= {row.contestant for row in rows if not row.failed}


def _run_case(case: Case, args: argparse.Namespace) -> list[Row]:
    """The rows of one case."""
    rows = {name: Row(**case.as_dict(), contestant=name) for name in args.contestants}
    work = flops(case)
    model, x = make_model(case), make_input(case)
    reference = reference_output(model, x, lambda output: output)
    with torch.no_grad():
        eager = in_precision(model, case)(images_in_precision(x, case)).double()
    eager_error = (eager - reference).abs().max().item()
    del model, eager
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, row in rows.items():
            folder = Path(temporary) / name
            folder.mkdir()
            try:
                row.prepare, worker = _prepare(name, case, folder, args.threads, stack)
                row.first_result, output = worker.load()
            except WorkerError as error:
                row.left_out = str(error).strip().splitlines()[-1]
                progress(f"  {name}: left out: {error if not error.left_out else row.left_out}")
                row.failed = not error.left_out
                continue
            row.flops = work
            differences = torch.from_numpy(output).double() - reference
            row.error = differences.abs().max().item()
            row.rms_error = differences.square().mean().sqrt().item()
            progress(
                f"  {name}: prepared in {row.prepare:.1f} s, first result in "
                f"{row.first_result:.1f} s, largest error {row.error:.1e}"
            )
            if name.startswith("max") and not agrees(row.error, eager_error):
                progress(f"  {name}: WRONG: eager's largest error is {eager_error:.1e}")
                row.failed = True
            workers[name] = worker
        _time_in_turns(workers, rows, args.rounds)
    return list(rows.values())


def _prepare(
    name: str, case: Case, folder: Path, threads: int, stack: ExitStack
) -> tuple[float, Worker]:
    progress(f"  {name}: preparing ...")
    with Worker(name, case, folder, threads) as first:
        seconds = first.prepare()
    return seconds, stack.enter_context(Worker(name, case, folder, threads))


def _time_in_turns(workers: dict[str, Worker], rows: dict[str, Row], rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in workers}
    products: dict[str, list[float]] = {name: [] for name in workers if name in ("max", "eager")}
    counts: dict[str, int] = {}
    untimed: dict[str, int] = {}
    for name, worker in workers.items():
        worker.reset_peak()
        (fastest,) = worker.run(1)
        slow = fastest > SLOW
        if not slow:
            fastest = min(fastest, *worker.run(1))
        counts[name] = max(1, round(SECONDS_A_TURN / fastest))
        untimed[name] = 0 if slow else min(3, counts[name])
    for turn in range(rounds):
        for name, worker in workers.items():
            if sum(times[name]) > SECONDS_ENOUGH:
                continue
            time.sleep(SECONDS_BETWEEN_TURNS)
            worker.run(untimed[name])  # wakes its own threads
            times[name] += worker.run(counts[name])
            if turn == 0:  # before a product takes memory in the same process
                rows[name].peak_memory = worker.peak_memory()
        for name in products:
            time.sleep(SECONDS_BETWEEN_TURNS)
            products[name] += workers[name].matmul(5)
        progress(f"  round {turn + 1} of {rounds}")
    for name in workers:
        rows[name].summarize(times[name])
    m, k, n = MATMUL
    for name, taken in products.items():
        rows[name].matmul_flops_per_second = 2 * m * k * n / _median(taken)


def _median(values: Sequence[Any]) -> Any:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    sys.exit(main())
