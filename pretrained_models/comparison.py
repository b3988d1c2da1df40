"""Runs one model eagerly and through torch.compile backends, interleaved, against float64."""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from pretrained_models.errors import UsageError

EAGER = "eager"
ERROR_FACTOR = 10.0
ERROR_FLOOR = 1e-5
CRITERION = (
    f"Numbers agree when the largest error against eager PyTorch in float64 is at most "
    f"{ERROR_FACTOR:g} times that of eager in the model's own dtype, or {ERROR_FLOOR:g}."
)
COMPILE: dict[str, Any] = {"fullgraph": True, "dynamic": False}
SECONDS_BETWEEN_LINES = 5.0

Select = Callable[[Any], torch.Tensor]


@dataclass
class Result:
    """What one backend did with the model."""

    backend: str
    first_call: float = float("nan")
    origin: str = ""
    times: list[float] = field(default_factory=list)
    output: torch.Tensor | None = None
    error: float = float("nan")
    agrees: bool = True
    left_out: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else float("nan")


def progress(message: str) -> None:
    """One line on stderr, so that stdout holds the results alone."""
    print(message, file=sys.stderr, flush=True)


def positive_int(text: str) -> int:
    """A type for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def use_threads(count: int | None) -> None:
    """Restricts PyTorch and MAX to some cores.

    MAX has no setting for its threads; it starts as many as the process may use cores, so this
    runs before the first MAX call.
    """
    if count is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        progress("--threads: this system cannot limit MAX; only PyTorch follows it")
    else:
        cores = sorted(os.sched_getaffinity(0))
        if count > len(cores):
            raise UsageError(f"--threads {count}: this process may use {len(cores)} cores")
        os.sched_setaffinity(0, cores[:count])
    torch.set_num_threads(count)


def machine_note() -> str:
    """Cores and threads, and a warning when other programs are at work; waits half a second."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    note = f"{cores} cores, {torch.get_num_threads()} PyTorch threads."
    start = _cpu_seconds()
    time.sleep(0.5)
    busy = (_cpu_seconds() - start) / 0.5
    if busy > 0.2:
        others = f"Other programs are using {busy:.1f} cores: do not trust the timings."
        progress(others)
        note += f"\n{others}"
    return note


def _cpu_seconds() -> float:
    """CPU time that all programs of a Linux machine have used; 0 elsewhere."""
    statistics_file = Path("/proc/stat")
    if not statistics_file.exists():
        return 0.0
    user, nice, system = map(int, statistics_file.read_text().split(maxsplit=4)[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def parse_backends(text: str) -> list[str]:
    """Names of torch.compile backends from "eager,inductor,max"; eager, the baseline, is first.

    Raises:
        UsageError: torch knows no backend of that name.
    """
    names = dict.fromkeys([EAGER, *(name.strip() for name in text.split(",") if name.strip())])
    known = set(torch._dynamo.list_backends(None))
    for name in names:
        if name != EAGER and name not in known:
            raise UsageError(f"torch has no backend {name!r}; it lists: {', '.join(sorted(known))}")
    return list(names)


def randomise_(model: nn.Module, seed: int) -> None:
    """Gives every parameter a seeded random value of a usual scale.

    A fresh `vit` layer is the identity and fresh biases are zero: with those values a comparison
    of two implementations would pass with half of the model missing.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                noise *= max(1, parameter[0].numel()) ** -0.5  # no token is legal
            elif name.endswith(("weight", "gamma")):
                noise = 1 + 0.1 * noise
            else:
                noise *= 0.02
            parameter.copy_(noise)


def reference_output(model: nn.Module, inputs: torch.Tensor, select: Select) -> torch.Tensor:
    """The model's output in eager float64."""
    with torch.no_grad():
        return select(copy.deepcopy(model).double()(inputs.double()))


def max_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference; infinite where one of the two is not a number."""
    if output.shape != reference.shape:
        return float("inf")
    difference = (output.double() - reference).abs()
    return difference.nan_to_num(nan=float("inf")).max().item() if difference.numel() else 0.0


def agrees(error: float, eager_error: float) -> bool:
    """Whether an error is that of rounding; see CRITERION."""
    return error <= max(ERROR_FACTOR * eager_error, ERROR_FLOOR)


class CompileOrigin:
    """Tells whether the compile that happens after its creation came from a disk cache."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._before = self._cached_and_compiled()

    def read(self) -> str:
        """ "cached", "compiled", or "" where the backend does not say."""
        cached, compiled = (
            after - before
            for after, before in zip(self._cached_and_compiled(), self._before, strict=True)
        )
        return "compiled" if compiled else "cached" if cached else ""

    def _cached_and_compiled(self) -> tuple[int, int]:
        if self._backend == "max":
            from torch_max_backend.compile_statistics import statistics as max_statistics

            return max_statistics.cached, max_statistics.compiled
        if self._backend == "inductor":
            from torch._dynamo.utils import counters

            hits = counters["aot_autograd"]["autograd_cache_hit"]
            hits += counters["inductor"]["fxgraph_cache_hit"]
            return hits, counters["inductor"]["fxgraph_cache_miss"]
        return 0, 0


def _why_unavailable(backend: str) -> str | None:
    """The reason why a backend cannot run here, when that is known before it is tried."""
    if backend == "inductor":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "Inductor needs a C++ compiler and none was found"
    return None


def compare(
    name: str,
    model: nn.Module,
    inputs: torch.Tensor,
    *,
    backends: Sequence[str],
    iterations: int,
    select: Select,
) -> list[Result]:
    """Runs the model through each backend and times them in turns.

    Args:
        name: the model's name in progress messages.
        model: a module in eval mode.
        inputs: its only argument.
        backends: "eager" first, then names of torch.compile backends.
        iterations: rounds; in each, every backend runs once.
        select: takes the tensor to compare out of the model's output.
    """
    assert backends[0] == EAGER
    progress(f"{name}: reference in eager float64")
    reference = reference_output(model, inputs, select)
    results: list[Result] = []
    runs: dict[str, Callable[[torch.Tensor], object]] = {}
    with torch.no_grad():
        for backend in backends:
            run = model if backend == EAGER else torch.compile(model, backend=backend, **COMPILE)
            result = _first_call(name, backend, run, inputs, select)
            results.append(result)
            if result.output is None:
                progress(f"{name}: {backend} is left out: {result.left_out}")
                continue
            progress(f"{name}: {backend}: first call took {result.first_call:.2f} s")
            result.error = max_error(result.output, reference)
            result.agrees = agrees(result.error, results[0].error)
            runs[backend] = run
        said = time.perf_counter()
        for iteration in range(iterations):
            for result in results:
                if result.backend in runs:
                    start = time.perf_counter()
                    runs[result.backend](inputs)
                    result.times.append(time.perf_counter() - start)
            if time.perf_counter() - said > SECONDS_BETWEEN_LINES or iteration + 1 == iterations:
                said = time.perf_counter()
                progress(f"{name}: round {iteration + 1} of {iterations}")
    return results


def _first_call(
    name: str,
    backend: str,
    run: Callable[[torch.Tensor], object],
    inputs: torch.Tensor,
    select: Select,
) -> Result:
    result = Result(backend, left_out=_why_unavailable(backend))
    if result.left_out:
        return result
    progress(f"{name}: {backend}: first call ...")
    origin = CompileOrigin(backend)
    start = time.perf_counter()
    try:
        result.output = select(run(inputs)).clone()
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if backend == "max":
            raise
        # Another backend's trouble with this machine (no Python headers, for one) is shown in
        # its row and does not stop the comparison.
        result.left_out = str(error).strip().splitlines()[0]
        return result
    result.first_call = time.perf_counter() - start
    result.origin = origin.read()
    return result


def results_table(results: dict[str, list[Result]]) -> str:
    """One row per model and backend, and below it why a backend was left out."""
    rows, notes = [], []
    for name, of_model in results.items():
        eager = of_model[0]
        for result in of_model:
            if result.left_out:
                rows.append([name, result.backend, "left out"])
                notes.append(f"{name}: {result.backend} is left out: {result.left_out}")
                continue
            first = f"{result.first_call:.2f}" + (f" ({result.origin})" if result.origin else "")
            rows.append(
                [
                    name,
                    result.backend,
                    first,
                    f"{result.median * 1e3:.1f}",
                    f"{eager.median / result.median:.2f}",
                    f"{result.error:.1e}",
                    "yes" if result.agrees else "NO",
                ]
            )
    headers = [
        "model",
        "backend",
        "first call (s)",
        "later calls (ms, median)",
        "speed (eager = 1)",
        "largest error (float64)",
        "agrees",
    ]
    alignment = ("left", "left", *["right"] * 5)
    table = tabulate(rows, headers, disable_numparse=True, colalign=alignment)
    return "\n".join([table, *notes])
