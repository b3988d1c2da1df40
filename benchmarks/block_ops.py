"""Every operation of a ViT's block: ours beside eager PyTorch's, and its share of the block.

    python -m benchmarks.block_ops [--model vit-s] [--batch 8] [--dtype float32] [--rounds 15]

Each operation is a graph of its own, with what MAX fuses into it (bias, activation, residual). What
a call costs besides, measured on a graph that adds to one number, is taken off ours. The ways are
timed in turns. The sum of the operations is shown beside a block compiled as one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from benchmarks.cases import DTYPES, SIZES
from benchmarks.timing import seconds
from pretrained_models.comparison import positive_int, progress

TOKENS = 197  # 14 x 14 patches and a class token
SECONDS_A_TURN = 0.2


@dataclass(frozen=True)
class Operation:
    """What a block does ``count`` times, and the operations of its matrix products."""

    name: str
    function: Callable[..., Tensor]
    inputs: Sequence[Tensor]
    flops: int = 0
    count: int = 1


def operations(
    batch: int, width: int, hidden: int, heads: int, dtype: torch.dtype
) -> list[Operation]:
    """The operations of a pre-norm block and, last, the block."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    x = randn(batch, TOKENS, width)
    gain, shift = randn(width), randn(width)
    qkv_weight, qkv_bias = randn(3 * width, width), randn(3 * width)
    out_weight, out_bias = randn(width, width), randn(width)
    up_weight, up_bias = randn(hidden, width), randn(hidden)
    down_weight, down_bias = randn(width, hidden), randn(width)

    def norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), gain, shift)

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = qkv.view(batch, TOKENS, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(batch, TOKENS, width)

    def add_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x + F.linear(y, weight, bias)

    def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.linear(x, weight, bias))

    def block(x: Tensor) -> Tensor:
        y = attend(F.linear(norm(x, gain, shift), qkv_weight, qkv_bias))
        x = add_linear(x, y, out_weight, out_bias)
        y = linear_gelu(norm(x, gain, shift), up_weight, up_bias)
        return add_linear(x, y, down_weight, down_bias)

    product = 2 * batch * TOKENS * width
    scores = 2 * product * TOKENS
    return [
        Operation("layer norm", norm, [x, gain, shift], count=2),
        Operation("qkv projection", F.linear, [x, qkv_weight, qkv_bias], 3 * product * width),
        Operation("attention", attend, [randn(batch, TOKENS, 3 * width)], scores),
        Operation(
            "output projection + residual",
            add_linear,
            [x, x, out_weight, out_bias],
            product * width,
        ),
        Operation("MLP up + GELU", linear_gelu, [x, up_weight, up_bias], product * hidden),
        Operation(
            "MLP down + residual",
            add_linear,
            [x, randn(batch, TOKENS, hidden), down_weight, down_bias],
            product * hidden,
        ),
        Operation("block", block, [x], product * (4 * width + 2 * hidden) + scores),
    ]


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, timed in turns."""
    counts, times = {}, {name: list[float]() for name in calls}
    for name, call in calls.items():
        call()
        counts[name] = max(3, round(SECONDS_A_TURN / seconds(call)))
    for _ in range(rounds):
        for name, call in calls.items():
            times[name] += [seconds(call) for _ in range(counts[name])]
    return {name: statistics.median(found) for name, found in times.items()}


def table(found: Sequence[Operation], eager: dict[str, float], ours: dict[str, float]) -> str:
    """A line per operation, the sum of all, and the block."""
    *parts, block = found
    whole = ours[block.name]
    lines = []
    for operation in parts:
        name, count = operation.name, operation.count
        lines.append(
            [
                name + (f" (x {count})" if count > 1 else ""),
                _milliseconds(eager[name] * count),
                _milliseconds(ours[name] * count),
                f"{eager[name] / ours[name]:.2f}",
                f"{ours[name] * count / whole:.0%}",
                _rate(operation.flops, eager[name]),
                _rate(operation.flops, ours[name]),
            ]
        )
    sums = [sum(times[part.name] * part.count for part in parts) for times in (eager, ours)]
    for name, (theirs, own) in {
        "sum": sums,
        "block as one graph": (eager[block.name], whole),
    }.items():
        lines.append(
            [
                name,
                _milliseconds(theirs),
                _milliseconds(own),
                f"{theirs / own:.2f}",
                f"{own / whole:.0%}",
                _rate(block.flops, theirs),
                _rate(block.flops, own),
            ]
        )
    headers = [
        "operation",
        "eager (ms)",
        "max (ms)",
        "max is faster by",
        "share of the block",
        "eager (GFLOP/s)",
        "max (GFLOP/s)",
    ]
    alignment = ("left", *["right"] * 6)
    return tabulate(lines, headers, disable_numparse=True, colalign=alignment)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _rate(flops: int, seconds: float) -> str:
    return f"{flops / seconds / 1e9:.0f}" if flops else ""


def block_arguments(
    prog: str, description: str, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Which block is measured, and how often."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--model", choices=list(SIZES), default="vit-s")
    parser.add_argument("--batch", type=positive_int, default=8)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--rounds", type=positive_int, default=15)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = block_arguments("block_ops", "The operations of a ViT's block", arguments)
    _, width, hidden, heads = SIZES[args.model]
    found = operations(args.batch, width, hidden, heads, DTYPES[args.dtype])
    eager: dict[str, float] = {}
    ours: dict[str, float] = {}
    with torch.no_grad():
        empty = torch.compile(lambda x: x + 1, backend="max", fullgraph=True, dynamic=False)
        number = torch.ones(())
        for operation in found:
            progress(f"{operation.name} ...")
            compiled = torch.compile(
                operation.function, backend="max", fullgraph=True, dynamic=False
            )
            medians = measure(
                {
                    "eager": lambda op=operation: op.function(*op.inputs),  # type: ignore[misc]
                    "max": lambda op=operation, run=compiled: run(*op.inputs),  # type: ignore[misc]
                    "call": lambda: empty(number),
                },
                args.rounds,
            )
            eager[operation.name] = medians["eager"]
            ours[operation.name] = medians["max"] - medians["call"]
    threads = torch.get_num_threads()
    print(f"{args.model}, batch {args.batch}, {args.dtype}, {threads} threads")
    print(table(found, eager, ours))
    return 0


if __name__ == "__main__":
    sys.exit(main())
