"""One contestant in a process of its own, driven by the benchmark through a pipe.

A process each keeps thread pools apart and lets peak memory be read per contestant.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import resident
from benchmarks.timing import seconds

MATMUL = (1576, 768, 3072)
"""M, K, N of the matrix product that the machine's rate is measured by: ViT-B's MLP at batch 8."""


class WorkerError(Exception):
    """What went wrong in a worker, with its traceback; ``left_out`` where that is no fault."""

    def __init__(self, message: str, left_out: bool = False) -> None:
        super().__init__(message)
        self.left_out = left_out


class Worker:
    """A contestant's process; methods are its commands and raise WorkerError."""

    def __init__(self, contestant: str, case: Any, folder: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, contestant, case, folder, threads)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()

    def prepare(self) -> float:
        """Compiles or exports; seconds after the imports."""
        return self._ask("prepare")

    def load(self) -> tuple[float, Any]:
        """Seconds from the imports to the first result, and the result as a float32 array."""
        return self._ask("load")

    def run(self, count: int) -> list[float]:
        """Seconds of each of some calls."""
        return self._ask("run", count)

    def matmul(self, count: int) -> list[float]:
        """Seconds of each product of MATMUL's size by the contestant's own kernels."""
        return self._ask("matmul", count)

    def reset_peak(self) -> None:
        """Forgets the peak memory of loading."""
        self._ask("reset_peak")

    def peak_memory(self) -> int:
        """Bytes resident at most since reset_peak."""
        return self._ask("peak_memory")

    def anonymous_memory(self) -> int:
        """Bytes resident now that no file holds."""
        return self._ask("anonymous_memory")

    def _ask(self, command: str, *args: Any) -> Any:
        try:
            self._pipe.send((command, args))
            status, value = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            self._process.join(timeout=10)
            raise WorkerError(f"the process ended with {self._process.exitcode}") from None
        if status == "ok":
            return value
        raise WorkerError(value, left_out=status == "left out")


def _serve(pipe: Connection, contestant: str, case: Any, folder: Path, threads: int) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    tqdm.set_lock(threading.RLock())  # the lock it would make itself outlives os._exit
    commands = _Commands(contestant, case, folder, threads)
    while True:
        try:
            command, args = pipe.recv()
        except EOFError:
            sys.stdout.flush()
            os._exit(0)  # runtimes with threads of their own may not survive an orderly exit
        try:
            pipe.send(("ok", getattr(commands, command)(*args)))
        except Exception as error:
            from benchmarks.contestants import LeftOut

            if isinstance(error, LeftOut):
                pipe.send(("left out", str(error)))
            else:
                pipe.send(("error", traceback.format_exc()))


class _Commands:
    def __init__(self, contestant: str, case: Any, folder: Path, threads: int) -> None:
        import torch

        from benchmarks import cases, contestants

        torch.set_num_threads(threads)
        self.name = contestant
        self.contestant = contestants.CONTESTANTS[contestant]
        self.case = case
        self.folder = folder
        self.x = cases.make_input(case)
        self._multiply: Callable[[], Any] | None = None

    def prepare(self) -> float:
        start = time.perf_counter()
        self.contestant.prepare(self.case, self.folder)
        return time.perf_counter() - start

    def load(self) -> tuple[float, Any]:
        start = time.perf_counter()
        self._run = self.contestant.load(self.case, self.folder)
        result = self._run(self.x)
        return time.perf_counter() - start, result.float().numpy()

    def run(self, count: int) -> list[float]:
        return _timed(lambda: self._run(self.x), count)

    def matmul(self, count: int) -> list[float]:
        if self._multiply is None:
            self._multiply = _matmul(self.name)
            self._multiply()
        return _timed(self._multiply, count)

    def reset_peak(self) -> None:
        resident.reset_peak()

    def peak_memory(self) -> int:
        return resident.peak()

    def anonymous_memory(self) -> int:
        return resident.anonymous()


def _timed(call: Callable[[], Any], count: int) -> list[float]:
    return [seconds(call) for _ in range(count)]


def _matmul(name: str) -> Callable[[], Any]:
    import torch

    m, k, n = MATMUL
    left, right = torch.randn(m, k), torch.randn(k, n)
    if name == "eager":
        return lambda: left @ right
    product = torch.compile(torch.matmul, backend=name, fullgraph=True, dynamic=False)
    return lambda: product(left, right)
