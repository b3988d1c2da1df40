"""Time and memory of what ``vit benchmark`` runs, in processes of their own."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit import ViTConfig
from vit.flops import product_flops

PASS_MODES = {"forward": 1, "backward": 2, "forward_backward": 3}
"""What is timed, and its matrix products as a multiple of the forward's."""


@dataclass(frozen=True)
class BenchmarkCase:
    """A model at one batch and image size, one way of running it.

    Args:
        config: the YAML file.
        image_size: height and width; None: the configuration's.
        backend: ``"eager"`` or a backend of ``torch.compile``.
    """

    config: Path
    batch_size: int
    image_size: tuple[int, int] | None
    pass_mode: str
    backend: str
    device: str
    warmup_iters: int
    latency_iters: int
    memory_iters: int

    def model_config(self) -> ViTConfig:
        config = ViTConfig.from_yaml(self.config)
        return config if self.image_size is None else replace(config, img_size=self.image_size)


def measure_apart(case: BenchmarkCase) -> dict[str, Any]:
    """``measure`` in a new process, so that one case's memory and crash are its own.

    What is compiled is compiled by another process before and read from the disk here: a compiler
    leaves more memory behind than the model takes.

    Raises:
        BrokenProcessPool: the process died.
        Exception: whatever stopped the case.
    """
    if case.backend != "eager":
        _apart(_run_once, case)
    return _apart(measure, case)


def _apart(function: Callable[[BenchmarkCase], Any], case: BenchmarkCase) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, case).result()


def _run_once(case: BenchmarkCase) -> None:
    model, _, forward = _prepare(case)
    _one_pass(case, model, forward)


def _prepare(case: BenchmarkCase) -> tuple[torch.nn.Module, Tensor, Callable[[], Tensor]]:
    """The model, an input, and the call that runs one on the other."""
    config = case.model_config()
    torch.manual_seed(0)
    model = config.instantiate().to(case.device)
    model = model.eval() if case.pass_mode == "forward" else model.train()
    shape = (case.batch_size, config.in_channels, *config.img_size)
    x = torch.randn(shape).to(case.device, next(model.parameters()).dtype)
    run: Callable[[Tensor], Any] = model
    if case.backend != "eager":
        run = torch.compile(model, backend=case.backend, fullgraph=True, dynamic=False)

    def forward() -> Tensor:
        return run(x).dense_features

    return model, x, forward


def measure(case: BenchmarkCase) -> dict[str, Any]:
    """Median and quartiles of the latency in ms, peak memory in MiB, and GFLOP/s."""
    model, x, forward = _prepare(case)
    for _ in range(max(1, case.warmup_iters)):
        _one_pass(case, model, forward)
    times = sorted(_one_pass(case, model, forward) for _ in range(case.latency_iters))
    memory = _peak_memory(case, lambda: _one_pass(case, model, forward))
    lower, median, upper = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {
        "latency_ms": median * 1e3,
        "latency_lower_ms": lower * 1e3,
        "latency_upper_ms": upper * 1e3,
        "memory_mb": memory / 2**20,
        "gflops": product_flops(model, x) * PASS_MODES[case.pass_mode] / median / 1e9,
    }


def _one_pass(case: BenchmarkCase, model: torch.nn.Module, forward: Callable[[], Tensor]) -> float:
    """Seconds of what the case asks for."""
    if case.pass_mode == "forward":
        with torch.no_grad():
            return seconds(case.device, forward)
    model.zero_grad()
    if case.pass_mode == "forward_backward":
        return seconds(case.device, lambda: forward().sum().backward())
    loss = forward().sum()
    return seconds(case.device, loss.backward)


def seconds(device: str, call: Callable[[], Any]) -> float:
    """Of one call, the device synchronised before and after."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: str) -> None:
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


def _peak_memory(case: BenchmarkCase, call: Callable[[], Any]) -> int:
    """Bytes: what the process has resident at most, or what the device has in use afterwards."""
    if torch.device(case.device).type == "cuda":
        for _ in range(case.memory_iters):
            call()
        free, total = torch.cuda.mem_get_info()
        return total - free
    return _peak_resident(call, case.memory_iters)


def _peak_resident(call: Callable[[], Any], count: int) -> int:
    """The high-water mark of the calls alone where Linux lets it be reset, else of the process."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        for _ in range(count):
            call()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    reset.write_text("5")
    for _ in range(count):
        call()
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
