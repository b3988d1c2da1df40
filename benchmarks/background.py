"""How long a model with graph breaks is answered by eager PyTorch in background mode.

    python -m benchmarks.background [--parts 4] [--pause 0.05]

The model has that many parts of different widths, a graph break after each, and is called again
after each pause. With empty caches: seconds to the first answer, and until MAX answers for all
parts; milliseconds of a call by eager alone, meanwhile and afterwards (medians).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environment import caches_below
from benchmarks.timing import seconds
from pretrained_models.comparison import positive_int

WIDTH, HEADS, TOKENS, BATCH = 256, 4, 200, 8
CALLS = 20


class Part(nn.Module):
    """A pre-norm block; its MLP has ``hidden`` columns."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.first_norm(x)).unflatten(-1, (3, HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.second_norm(x))


class Parts(nn.Module):
    """Parts that Dynamo makes a graph of each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Part((2 + i) * WIDTH) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
            torch._dynamo.graph_break()
        return x


def milliseconds(call: Callable[[], object], pause: float) -> float:
    """Median of some calls."""
    times = []
    for _ in range(CALLS):
        times.append(seconds(call))
        time.sleep(pause)
    return statistics.median(times) * 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="background", description="A start in background mode")
    parser.add_argument("--parts", type=positive_int, default=4)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between calls")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    model, x = Parts(args.parts).eval(), torch.randn(BATCH, TOKENS, WIDTH)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        os.environ.update(caches_below(Path(folder)))
        from torch_max_backend.compile_statistics import statistics as compiled

        expected = model(x)
        eager = milliseconds(lambda: model(x), args.pause)
        options: Any = {"compile": "background"}
        run = torch.compile(model, backend="max", dynamic=False, options=options)
        start = time.perf_counter()
        first = seconds(lambda: run(x))
        meanwhile = []
        while compiled.cached < args.parts:
            time.sleep(args.pause)
            meanwhile.append(seconds(lambda: run(x)))
        ready = time.perf_counter() - start
        difference = (run(x) - expected).abs().max().item()
        afterwards = milliseconds(lambda: run(x), args.pause)
    print(f"{args.parts} parts, {torch.get_num_threads()} threads")
    print(f"first answer    {first:.2f} s")
    print(f"all by MAX after {ready:.1f} s, largest difference from eager {difference:.1e}")
    print(
        f"a call: {eager:.1f} ms by eager, {statistics.median(meanwhile) * 1e3:.1f} ms meanwhile, "
        f"{afterwards:.1f} ms afterwards"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
