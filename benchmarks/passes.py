"""What each pass of the compiler brings: a model compiled without it beside one with all.

    python -m benchmarks.passes [--model vit-s] [--batch 8] [--dtype float32] [--rounds 20]
                                [--freeze]

Passes that change nothing in the model's graph are named and left out: try the models
"written-attention", "rotary-vit-s", "silu-vit-s", "quick-gelu-vit-s" and "swiglu-vit-s", and
--dtype int8, for those. With --freeze the passes are those of ``options={"freeze": True}``. All are
called by turns in one process, as in ``benchmarks.by_turns``: below 1 it is the slower one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

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
from benchmarks.own_code import with_own_code
from pretrained_models.comparison import positive_int, progress
from torch_max_backend import export, freezing, passes

Pass = Callable[..., None]


def only(kept: Sequence[Pass], module: Any = passes) -> AbstractContextManager[object]:
    """Lets programs be compiled with these passes of the module's."""
    return mock.patch.object(module, "PASSES", tuple(kept))


def recorded(rewrite: Pass, fired: list[Pass]) -> Pass:
    """A pass that notes itself where it changes a graph."""

    def apply(gm: torch.fx.GraphModule, *rest: Any) -> None:
        before = str(gm.graph)
        rewrite(gm, *rest)
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
    for left_out, kept in without_each(every, fired):
        found.append(folder / f"without {left_out}.max")
        with only(kept):
            exported(path=found[-1])
    return found


def frozen(case: Case) -> dict[str, by_turns.Call]:
    """Calls of the model frozen, frozen without each pass that changes its graph, and as it is."""
    fired: list[Pass] = []
    every = freezing.PASSES
    progress(f"{case}: frozen ...")
    with only([recorded(rewrite, fired) for rewrite in every], freezing):
        found = {"frozen": compiled(case, freeze=True)}
    for left_out, kept in without_each(every, fired):
        with only(kept, freezing):
            found[f"without {left_out}"] = compiled(case, freeze=True)
    progress("not frozen ...")
    return {**found, "not frozen": compiled(case, freeze=False)}


def without_each(every: Sequence[Pass], fired: Sequence[Pass]) -> Iterator[tuple[str, list[Pass]]]:
    """The name of each pass that changed the graph, and the others."""
    for left_out in every:
        if left_out not in fired:
            progress(f"{left_out.__name__}: changes nothing here")
            continue
        progress(f"without {left_out.__name__} ...")
        yield left_out.__name__, [rewrite for rewrite in every if rewrite is not left_out]


def compiled(case: Case, freeze: bool) -> by_turns.Call:
    """A call of the case, compiled with the passes that are in place now."""
    model = in_precision(make_model(case), case)
    x = images_in_precision(make_input(case), case)
    # Without the cache, which does not know that passes are missing.
    options: Any = {"freeze": freeze, "cache": False}
    run = torch.compile(with_own_code(model), backend="max", dynamic=False, options=options)
    run(x)
    return lambda: [run(x)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="passes", description="What each pass brings")
    parser.add_argument("--model", choices=list(MODELS), default="vit-s")
    parser.add_argument("--batch", type=positive_int, default=8)
    parser.add_argument("--dtype", choices=list(PRECISIONS), default="float32")
    parser.add_argument("--rounds", type=positive_int, default=20)
    parser.add_argument("--freeze", action="store_true", help="the passes that know the weights")
    args = parser.parse_args(arguments)
    case = Case(args.model, args.batch, 224, args.dtype)
    tolerance = 1e-4 if args.dtype == "float32" else 0.05
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        if args.freeze:
            calls = frozen(case)
        else:
            found = packages(case, Path(folder))
            calls = dict(zip([path.stem for path in found], by_turns.calls(found), strict=True))
        return by_turns.compare(
            list(calls), list(calls.values()), args.rounds, tolerance, "compiled with"
        )


if __name__ == "__main__":
    sys.exit(main())
