"""The memory of a model at inference: MAX beside eager PyTorch, Inductor, ONNX Runtime, OpenVINO.

    python -m benchmarks.memory [--model vit-s] [--batches 1 8 32] [--dtype float32]

Each contestant is prepared (compiled, exported) in a process that ends, and loaded in another one,
whose resident memory is read: once torch and the benchmark are imported, at its peak until the
first result, and at its peak in later calls; and how much of it no file holds after them, so that
neither other processes share it nor the system drops it when short of memory (libraries' code and
weights that are mapped are the rest). MiB; Linux only. The weights' size is printed above.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.cases import DTYPES, MODELS, Case, make_model
from benchmarks.contestants import CONTESTANTS
from benchmarks.worker import Worker, WorkerError
from pretrained_models.comparison import positive_int, progress

CALLS = 5


def measure(case: Case, contestant: str) -> list[int]:
    """Bytes: after the imports, at most until the first result, at most in later calls, and of
    those that no file holds.

    Raises:
        WorkerError: the contestant fails or does not take part.
    """
    with tempfile.TemporaryDirectory() as folder:
        with Worker(contestant, case, Path(folder), torch.get_num_threads()) as first:
            first.prepare()
        with Worker(contestant, case, Path(folder), torch.get_num_threads()) as worker:
            found = [worker.peak_memory()]
            worker.load()
            found.append(worker.peak_memory())
            worker.reset_peak()
            worker.run(CALLS)
            return [*found, worker.peak_memory(), worker.anonymous_memory()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="memory", description="Memory of inference")
    parser.add_argument("--model", choices=list(MODELS), default="vit-s")
    parser.add_argument("--batches", nargs="+", type=positive_int, default=[1, 8, 32])
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    names = list(CONTESTANTS)
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    args = parser.parse_args(arguments)
    lines = []
    failed = False
    for batch in args.batches:
        case = Case(args.model, batch, 224, args.dtype)
        eager = None
        for name in args.contestants:
            progress(f"{case}: {name}")
            try:
                found = measure(case, name)
            except WorkerError as error:
                failed = failed or not error.left_out
                lines.append([batch, name, str(error).strip().splitlines()[-1]])
                continue
            eager = found if name == "eager" else eager
            shown = [f"{size / 2**20:.0f}" for size in found]
            if eager:
                shown += [f"{found[i] / eager[i]:.2f}" for i in (2, 3)]
            lines.append([batch, name, *shown])
    weights = sum(p.nbytes for p in make_model(case).to(DTYPES[args.dtype]).parameters())
    print(f"{args.model}, {args.dtype}, weights {weights / 2**20:.0f} MiB; MiB resident at most")
    headers = [
        *("batch", "contestant", "imports", "first result", "later calls", "of no file"),
        *("later calls beside eager", "of no file beside eager"),
    ]
    alignment = ("right", "left", *["right"] * 6)
    print(tabulate(lines, headers, disable_numparse=True, colalign=alignment))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
