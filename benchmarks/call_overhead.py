"""What a call of a compiled graph with 150 parameters costs beside MAX's own execute.

    python -m benchmarks.call_overhead [--parameters 150] [--rounds 20]

The graph adds tiny parameters, so that its own work is next to nothing. Four ways to call it are
timed in turns: MAX's public execute with ready buffers, the CompiledGraph (which binds the tensors,
runs and wraps the results), the callable of torch.compile (Dynamo's guards and AOTAutograd's
wrapper on top), and Dynamo alone (a backend that computes nothing).

All but the last end in the same call of MAX's runtime, which wakes its threads in 50 to 500 us, so
that the difference of two whole calls is mostly chance. What each takes outside that call is timed
too; the overhead is how much more of that the CompiledGraph has than execute.

Each timed call comes after the same pause. MAX's worker threads go to sleep within microseconds and
waking them costs more than all the rest: execute called back to back, without any work in between,
finds them awake and is shown as a row of its own, because no real program calls it so.

Prints a table and one line of JSON; exits with status 1 when the overhead is over 100 us. All of it
is Python, which takes twice as long while another program, or another guest of a rented machine,
has the other hardware thread of the core: the fastest tenth shows what a quiet core takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from max.driver import Buffer
from max.engine import Model
from tabulate import tabulate
from torch import nn

from torch_max_backend.executable import CompiledGraph

LIMIT_US = 100.0
PAUSE_US = 200.0
CALLS_PER_ROUND = 50
EXECUTE = "MAX execute, ready buffers"
GRAPH = "CompiledGraph"
CALLABLE = "torch.compile callable"
DYNAMO = "Dynamo alone"
BACK_TO_BACK = "MAX execute, back to back"


class ManyParameters(nn.Module):
    """x plus each of its parameters."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.terms = nn.ParameterList(torch.full((8,), float(i)) for i in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for term in self.terms:
            x = x + term
        return x


def compile_and_capture(
    model: nn.Module, x: torch.Tensor
) -> tuple[Callable[[torch.Tensor], torch.Tensor], CompiledGraph, list[Any]]:
    """The compiled callable, its CompiledGraph, and the flat arguments that graph gets."""
    captured: list[tuple[CompiledGraph, list[Any]]] = []
    original = CompiledGraph.__call__

    def record(graph: CompiledGraph, args: list[Any]) -> list[Any]:
        captured.append((graph, list(args)))
        return original(graph, args)

    run = torch.compile(model, backend="max", fullgraph=True, dynamic=False)
    with patch.object(CompiledGraph, "__call__", record):
        result = run(x)
    torch.testing.assert_close(result, model(x))
    ((graph, args),) = captured
    return run, graph, args


def dynamo_alone(model: nn.Module, x: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    """The model with a backend that returns a ready tensor: what is left is Dynamo's guards."""
    ready = [x.clone()]
    run = torch.compile(
        model, backend=lambda gm, inputs: lambda *args: ready, fullgraph=True, dynamic=False
    )
    run(x)
    return run


def busy_wait(microseconds: float) -> None:
    """Passes time without giving up the core, as a program at work would."""
    end = time.perf_counter() + microseconds * 1e-6
    while time.perf_counter() < end:
        pass


class RunTimer:
    """Stands in for the call of MAX's runtime and remembers how long it took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self) -> AbstractContextManager[Any]:
        execute = Model._execute_device_tensors

        def timed(model: Model, buffers: list[Buffer]) -> list[Buffer]:
            start = time.perf_counter()
            results = execute(model, buffers)
            self.seconds = time.perf_counter() - start
            return results

        return patch.object(Model, "_execute_device_tensors", timed)


class Spread(NamedTuple):
    """Microseconds of many calls: their median and the tenth percentile."""

    median: float
    fast: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        median, fast = statistics.median(seconds), statistics.quantiles(seconds, n=10)[0]
        return cls(round(median * 1e6, 1), round(fast * 1e6, 1))


class Times(NamedTuple):
    """Of whole calls, and of what they take outside MAX's runtime."""

    whole: Spread
    outside: Spread


def measure(
    calls: dict[str, Callable[[], Any]], rounds: int, pause: float = PAUSE_US
) -> dict[str, Times]:
    """How long each takes, timed in turns of CALLS_PER_ROUND calls."""
    whole: dict[str, list[float]] = {name: [] for name in calls}
    outside: dict[str, list[float]] = {name: [] for name in calls}
    inner = RunTimer()
    with inner.watch():
        for _ in range(rounds):
            for name, call in calls.items():
                for _ in range(CALLS_PER_ROUND):
                    busy_wait(pause)
                    inner.seconds = 0.0
                    start = time.perf_counter()
                    call()
                    seconds = time.perf_counter() - start
                    whole[name].append(seconds)
                    outside[name].append(seconds - inner.seconds)
    return {name: Times(Spread.of(whole[name]), Spread.of(outside[name])) for name in calls}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Call overhead of a compiled graph")
    parser.add_argument("--parameters", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args(arguments)

    x = torch.ones(4, 8)
    model = ManyParameters(args.parameters)
    with torch.no_grad():
        print("compiling ...", file=sys.stderr, flush=True)
        run, graph, flat = compile_and_capture(model, x)
        bound = [flat[item.argument] for item in graph.signature.inputs]
        buffers = [Buffer.from_dlpack(tensor.detach()) for tensor in bound]
        idle = dynamo_alone(model, x)
        calls: dict[str, Callable[[], Any]] = {
            EXECUTE: lambda: graph.model.execute(*buffers),
            GRAPH: lambda: graph(list(flat)),
            CALLABLE: lambda: run(x),
            DYNAMO: lambda: idle(x),
        }
        measure(calls, rounds=1)  # warm up
        times = measure(calls, args.rounds)
        times |= measure({BACK_TO_BACK: calls[EXECUTE]}, args.rounds, pause=0)

    mine, theirs = times[GRAPH].outside, times[EXECUTE].outside
    overhead = Spread(round(mine.median - theirs.median, 1), round(mine.fast - theirs.fast, 1))
    rows = [[name, *(f"{us:.0f}" for us in (*t.whole, *t.outside))] for name, t in times.items()]
    headers = ["call (us)", "median", "fastest tenth", "outside MAX", "fastest tenth"]
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * 4)))
    print(
        f"overhead: {overhead.median:.0f} us beside execute, fastest tenth {overhead.fast:.0f} us; "
        f"limit {LIMIT_US:.0f} us"
    )
    print(
        json.dumps(
            {
                "parameters": args.parameters,
                "pause_us": PAUSE_US,
                "calls": args.rounds * CALLS_PER_ROUND,
                "us": {
                    name: {kind: spread._asdict() for kind, spread in t._asdict().items()}
                    for name, t in times.items()
                },
                "overhead_us": overhead._asdict(),
                "limit_us": LIMIT_US,
            }
        )
    )
    return 0 if overhead.median <= LIMIT_US else 1


if __name__ == "__main__":
    sys.exit(main())
