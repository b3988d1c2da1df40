"""What each pass of the compiler brings: packages of a model without it beside one with all.

    python -m benchmarks.passes [--model vit-s] [--batch 8] [--dtype float32] [--rounds 20]

Passes that change nothing in the model's graph are named and left out: try the model
"written-attention" and --dtype int8 for those. The packages are called by turns in one process, as
in ``benchmarks.by_turns``: below 1 a package is the slower one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch.fx import GraphModule

from benchmarks import by_turns
from benchmarks.cases import (
    MODELS,
    PRECISIONS,
    Case,
    images_in_precision,
    in_precision,
    make_input,
    make_model,
)
from pretrained_models.comparison import positive_int, progress
from torch_max_backend import export, passes

Pass = Callable[[GraphModule], None]


def only(kept: Sequence[Pass]) -> AbstractContextManager[object]:
    """Lets programs be compiled with these passes."""
    return mock.patch.object(passes, "PASSES", tuple(kept))


def recorded(rewrite: Pass, fired: list[Pass]) -> Pass:
    """A pass that notes itself where it changes a graph."""

    def apply(gm: GraphModule) -> None:
        before = str(gm.graph)
        rewrite(gm)
        if str(gm.graph) != before:
            fired.append(rewrite)

    return apply


def packages(case: Case, folder: Path) -> list[Path]:
    """A package with all passes, and one without each that changes the model's graph."""
    fired: list[Pass] = []
    every = passes.PASSES
    model = in_precision(make_model(case), case)
    exported = partial(export, model, (images_in_precision(make_input(case), case),))
    found = [folder / "all passes.max"]
    progress(f"{case}: all passes ...")
    with only([recorded(rewrite, fired) for rewrite in every]):
        exported(path=found[0])
    for left_out in every:
        if left_out not in fired:
            progress(f"{left_out.__name__}: changes nothing here")
            continue
        found.append(folder / f"without {left_out.__name__}.max")
        progress(f"{found[-1].stem} ...")
        with only([rewrite for rewrite in every if rewrite is not left_out]):
            exported(path=found[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="passes", description="What each pass brings")
    parser.add_argument("--model", choices=list(MODELS), default="vit-s")
    parser.add_argument("--batch", type=positive_int, default=8)
    parser.add_argument("--dtype", choices=list(PRECISIONS), default="float32")
    parser.add_argument("--rounds", type=positive_int, default=20)
    args = parser.parse_args(arguments)
    case = Case(args.model, args.batch, 224, args.dtype)
    options = ["--rounds", str(args.rounds)]
    if args.dtype != "float32":
        options += ["--tolerance", "0.05"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        return by_turns.main([*map(str, packages(case, Path(folder))), *options])


if __name__ == "__main__":
    sys.exit(main())
