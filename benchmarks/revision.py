"""One revision's process: `benchmarks.revisions` runs this file with that revision's packages.

It therefore asks of them nothing but the names of a case and of a contestant.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.cases import Case, make_input, make_model
from benchmarks.contestants import CONTESTANTS


def main(contestant: str, model: str, batch: str, dtype: str) -> None:
    """Prints a JSON object when the model has run, and one for each number of calls it reads."""
    case = Case(model, int(batch), 224, dtype)
    x = make_input(case)
    with torch.no_grad():
        expected = make_model(case)(x)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = CONTESTANTS[contestant].load(case, Path(folder))
        result = run(x)
    elapsed = time.perf_counter() - start
    error = (result.float() - expected).abs().max().item()
    print(json.dumps({"seconds": elapsed, "error": error}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line) + 1):
            start = time.perf_counter()
            run(x)
            times.append(time.perf_counter() - start)
        print(json.dumps({"times": times[1:]}), flush=True)  # the first call wakes the workers


if __name__ == "__main__":
    main(*sys.argv[1:])
