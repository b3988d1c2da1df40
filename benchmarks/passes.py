"""What each pass of the compiler brings: packages of a model without it beside one with all.

    python -m benchmarks.passes [--model vit-s] [--batch 8] [--dtype float32] [--rounds 20]

Passes that change nothing in the model's graph are named and left out. The packages are called by
turns in one process, as in ``benchmarks.by_turns``: below 1 a package is the slower one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch.fx import GraphModule

from benchmarks.by_turns import in_turns, table
from benchmarks.cases import (
    DTYPES,
    MODELS,
    Case,
    images_in_precision,
    in_precision,
    make_input,
    make_model,
)
from pretrained_models.comparison import positive_int, progress
from torch_max_backend import MaxBackendError, export, load, passes

Pass = Callable[[GraphModule], None]


@contextmanager
def only(kept: Sequence[Pass]) -> Iterator[None]:
    """Lets programs be compiled with these passes."""
    with mock.patch.object(passes, "PASSES", tuple(kept)):
        yield


def recorded(rewrite: Pass, fired: list[Pass]) -> Pass:
    """A pass that notes itself where it changes a graph."""

    def apply(gm: GraphModule) -> None:
        before = str(gm.graph)
        rewrite(gm)
        if str(gm.graph) != before:
            fired.append(rewrite)

    return apply


def packages(case: Case, folder: Path) -> dict[str, Path]:
    """A package with all passes, and one without each that changes the model's graph."""
    fired: list[Pass] = []
    every = passes.PASSES
    model = in_precision(make_model(case), case)
    compiled = partial(export, model, (images_in_precision(make_input(case), case),))
    found = {"all passes": folder / "all.max"}
    progress(f"{case}: all passes ...")
    with only([recorded(rewrite, fired) for rewrite in every]):
        compiled(path=found["all passes"])
    for left_out in every:
        name = f"without {left_out.__name__}"
        if left_out not in fired:
            progress(f"{left_out.__name__}: changes nothing here")
            continue
        progress(f"{name} ...")
        with only([rewrite for rewrite in every if rewrite is not left_out]):
            try:
                compiled(path=folder / f"{name}.max")
            except MaxBackendError as error:
                progress(f"{name}: {str(error).splitlines()[0]}")
                continue
        found[name] = folder / f"{name}.max"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="passes", description="What each pass brings")
    parser.add_argument("--model", choices=list(MODELS), default="vit-s")
    parser.add_argument("--batch", type=positive_int, default=8)
    parser.add_argument("--resolution", type=positive_int, default=224)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--rounds", type=positive_int, default=20)
    args = parser.parse_args(arguments)
    case = Case(args.model, args.batch, args.resolution, args.dtype)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        found = packages(case, Path(folder))
        models = [load(path) for path in found.values()]
        inputs = models[0].example_inputs()
        times = in_turns([partial(model.run, inputs) for model in models], args.rounds)
    print(f"{case}, {torch.get_num_threads()} threads")
    print(table(list(found), times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
