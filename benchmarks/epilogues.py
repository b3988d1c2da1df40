"""What follows a product, computed as its results are written or in a graph of its own.

    python -m benchmarks.epilogues [--model vit-s] [--batch 8] [--dtype float32] [--rounds 15]

For the four linear layers of a ViT's block: milliseconds that bias, GELU, layer scale and residual
connection add to the product they are fused with, and what each takes alone, from and to memory.
All graphs are compiled as one program and called by turns. The first are differences of two times
and vary by 3 % of the product's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from benchmarks.block_ops import TOKENS, block_arguments, measure
from benchmarks.cases import DTYPES, SIZES
from benchmarks.own_code import with_own_code
from pretrained_models.comparison import progress
from torch_max_backend import max_backend

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Step:
    """What is done to (rows, columns) results, given another tensor of some kind."""

    name: str
    function: Function
    operand: str
    """ "row": (columns,); "results": (rows, columns); "" where there is none."""


BIAS = Step("bias", torch.add, "row")
GELU = Step("GELU", lambda y: F.gelu(y), "")
LAYER_SCALE = Step("layer scale", torch.mul, "row")
RESIDUAL = Step("residual", torch.add, "results")
LAYERS: dict[str, tuple[Step, ...]] = {
    "qkv projection": (BIAS,),
    "output projection": (BIAS, LAYER_SCALE, RESIDUAL),
    "MLP up": (BIAS, GELU),
    "MLP down": (BIAS, LAYER_SCALE, RESIDUAL),
}


class Waiting:
    """A backend whose graphs are answered by eager PyTorch until all of them are known, so that
    MAX compiles them as one program."""

    def __init__(self) -> None:
        self.traces = True

    def __call__(self, gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compiled = max_backend(gm, inputs)
        return lambda *args: gm(*args) if self.traces else compiled(*args)


def graphs(rows: int, width: int, hidden: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Calls, compiled by MAX: "call" adds to one number; "LAYER" is a product, "LAYER: STEP" that
    with all steps up to this one, "LAYER, STEP alone" the step."""
    generator = torch.Generator().manual_seed(0)
    backend = Waiting()
    found: dict[str, Callable[[], Any]] = {}

    def randn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    def add(name: str, function: Function, *inputs: Tensor) -> None:
        run = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
        run(*inputs)
        found[name] = lambda: run(*inputs)

    sizes = [(3 * width, width), (width, width), (hidden, width), (width, hidden)]
    add("call", lambda x: x + 1, torch.ones(()))
    for (layer, steps), (columns, depth) in zip(LAYERS.items(), sizes, strict=True):
        shapes = {"row": (columns,), "results": (rows, columns)}
        operands = [[randn(*shapes[step.operand])] if step.operand else [] for step in steps]
        x, weight = randn(rows, depth), randn(columns, depth)
        add(layer, lambda x, weight: F.linear(x, weight), x, weight)
        for count, (step, given) in enumerate(zip(steps, operands, strict=True), 1):
            add(f"{layer}: {step.name}", followed(steps[:count]), x, weight, *sum(operands, []))
            alone = step.function
            add(f"{layer}, {step.name} alone", with_own_code(alone), randn(rows, columns), *given)
    backend.traces = False
    return found


def followed(steps: Sequence[Step]) -> Function:
    """A linear layer without bias and what is done to its results."""

    def layer(x: Tensor, weight: Tensor, *operands: Tensor) -> Tensor:
        y = F.linear(x, weight)
        rest = iter(operands)
        for step in steps:
            y = step.function(y, *([next(rest)] if step.operand else []))
        return y

    return with_own_code(layer)


def table(times: dict[str, float]) -> str:
    """A line a step, in milliseconds, and their sums."""
    lines, sums = [], [0.0, 0.0]
    for layer, steps in LAYERS.items():
        before = times[layer]
        lines.append([layer, "product", f"{(before - times['call']) * 1e3:.2f}", ""])
        for step in steps:
            now = times[f"{layer}: {step.name}"]
            found = [now - before, times[f"{layer}, {step.name} alone"] - times["call"]]
            lines.append(["", step.name, *(f"{seconds * 1e3:.2f}" for seconds in found)])
            sums = [a + b for a, b in zip(sums, found, strict=True)]
            before = now
    lines.append(["all of them", "", *(f"{seconds * 1e3:.2f}" for seconds in sums)])
    headers = ["layer", "what", "in the product (ms)", "alone (ms)"]
    return tabulate(
        lines, headers, disable_numparse=True, colalign=("left", "left", "right", "right")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    args = block_arguments("epilogues", "What follows products", arguments)
    _, width, hidden, _ = SIZES[args.model]
    progress("compiling ...")
    with torch.no_grad():
        found = graphs(args.batch * TOKENS, width, hidden, DTYPES[args.dtype])
        times = measure(found, args.rounds)
    print(f"{args.model}, batch {args.batch}, {args.dtype}, {torch.get_num_threads()} threads")
    print(table(times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
