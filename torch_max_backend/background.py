"""Compiling in the background: a process of its own fills the compile cache meanwhile.

Neither the trace nor MAX's compiler then takes this process's time: calls are answered by Dynamo's
graph, in eager PyTorch, until the cache has the executable. That process is what a second start of
the program would be; where it does not get there, the graph is traced and compiled here. Graphs
that wait when a process is ready to take them, as those between the graph breaks of a model, are
compiled there as one program: MAX's compiler takes little longer for several than for one.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any

import torch
from torch._guards import TracingContext, tracing
from torch.fx import GraphModule

from torch_max_backend import warm_start
from torch_max_backend.garbage import imported
from torch_max_backend.options import MaxOptions

log = logging.getLogger(__name__)

_AUTOCAST = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class TorchSettings:
    """What of torch's state a trace depends on and a new process does not have."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    default_dtype: torch.dtype
    matmul_precision: str
    deterministic: bool
    aot_autograd: bytes

    @classmethod
    def of_now(cls) -> TorchSettings:
        return cls(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            tuple(
                (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
                for kind in _AUTOCAST
            ),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch._functorch.config.save_config(),
        )


@dataclass(frozen=True)
class Input:
    """What of an argument its fake value does not tell."""

    is_parameter: bool
    requires_grad: bool
    is_inference: bool


@dataclass(frozen=True)
class Request:
    """What the other process is to compile; it finds the same key, or gives up."""

    graph: bytes
    inputs: tuple[Input, ...]
    options: MaxOptions
    settings: TorchSettings
    key: str


def can_wait(example_inputs: Sequence[torch.Tensor]) -> bool:
    """Whether a graph that has a key may be traced later, or elsewhere.

    Not where AOTAutograd would make a backward, or let Dynamo guard against inputs that share
    memory; nor where torch's state is on a GPU.
    """
    trains = torch.is_grad_enabled() and any(given.requires_grad for given in example_inputs)
    memory = [given.untyped_storage().data_ptr() for given in example_inputs if given.numel()]
    return not trains and len(set(memory)) == len(memory) and not torch.cuda.is_initialized()


class BackgroundCall:
    """A callable over the arguments of Dynamo's graph: eager's answers, then MAX's.

    Args:
        gm: the graph; it has a key and ``can_wait`` is true of its inputs.
        trace: traces and lowers it here, given (fake) inputs.
    """

    def __init__(
        self,
        gm: GraphModule,
        example_inputs: Sequence[torch.Tensor],
        options: MaxOptions,
        key: str,
        trace: Callable[[Sequence[Any]], Callable[..., Any]],
    ) -> None:
        self._gm: GraphModule | None = gm
        self._inputs = tuple(
            Input(isinstance(given, torch.nn.Parameter), given.requires_grad, given.is_inference())
            for given in example_inputs
        )
        self._options = dataclasses.replace(options, compile="lazy")
        self._settings = TorchSettings.of_now()
        self._key = key
        self._trace = trace
        self._context = TracingContext.try_get()
        self._run: Callable[..., Any] | None = None
        self._thread: Thread | None = None
        self._has_failed = False
        self._lock = Lock()

    def __call__(self, *args: Any) -> Any:
        gm = self._gm  # read first: another thread may switch to MAX meanwhile
        if self._has_failed:
            self._compile_here()
        if self._run is not None:
            return self._run(*args)
        assert gm is not None
        answer = gm(*args)
        self._start()  # after the answer: the compiler would take the processor from eager's
        return answer

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                log.info("compiling in the background, answering with eager")
                # no daemon: the executable is for the next process, too
                self._thread = Thread(target=self._work)
                self._thread.start()

    def _work(self) -> None:
        start = time.perf_counter()
        try:
            self._compile_there()
            run = warm_start.find(self._key)
            if run is None:
                raise RuntimeError("the compile cache does not have it")
        except Exception as error:
            reason = str(error)  # a record of the exception would keep its frames
            log.warning("not compiled in a process of its own, compiling here: %s", reason)
            self._has_failed = True
            return
        self._switch(run)
        log.info("ready after %.1f s, switching to MAX", time.perf_counter() - start)

    def _compile_there(self) -> None:
        assert self._gm is not None
        graph = imported("torch_max_backend.graph_pickle").save_dynamo_graph(self._gm)
        request = Request(graph, self._inputs, self._options, self._settings, self._key)
        processes.compile(request)

    def _compile_here(self) -> None:
        with self._lock:
            if not self._has_failed:
                return
            assert self._gm is not None
            pickling = imported("torch_max_backend.graph_pickle")
            with tracing(self._context):
                self._switch(self._trace(pickling.fake_inputs(self._gm)))

    def _switch(self, run: Callable[..., Any]) -> None:
        self._run = run
        self._has_failed = False
        self._gm = self._context = None
        del self._trace


class _Waiting:
    """A request, and why it was not met."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.taken = False
        self.error: str | None = None


class _Processes:
    """One process after the other, each for the requests that wait when it has started."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._one_at_a_time = Lock()

    def compile(self, request: Request) -> None:
        """Returns when the compile cache has what was asked for.

        Raises:
            RuntimeError: why it has not.
        """
        mine = _Waiting(request)
        self._waiting.append(mine)
        with self._one_at_a_time:
            if not mine.taken:  # by the process of another thread
                self._compile_waiting()
        if mine.error is not None:
            raise RuntimeError(mine.error)

    def _compile_waiting(self) -> None:
        process = _started()
        taken = []
        while self._waiting:  # others may append meanwhile
            taken.append(self._waiting.pop(0))
        for waiting, error in zip(taken, _answers(process, taken), strict=True):
            waiting.taken, waiting.error = True, error


processes = _Processes()


def _started() -> subprocess.Popen[bytes]:
    """A process that has imported what it needs, or has ended."""
    command = [sys.executable, "-P", "-m", "torch_max_backend.background_process"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=_environment(), stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _answers(process: subprocess.Popen[bytes], taken: Sequence[_Waiting]) -> list[str | None]:
    """For each request why it was not met, or None."""
    requests = pickle.dumps([waiting.request for waiting in taken])
    answers, said = process.communicate(requests)
    if process.returncode == 0:
        return list(json.loads(answers))
    lines = said.decode(errors="replace").strip().splitlines()
    return [lines[-1] if lines else f"it ended with {process.returncode}"] * len(taken)


def _environment() -> dict[str, str]:
    """This process's, with its modules, without what prints to the user."""
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    prints = ("TORCH_MAX_BACKEND_PROFILE", "TORCH_MAX_BACKEND_TRACE")
    kept = {name: value for name, value in os.environ.items() if name not in prints}
    return {**kept, **environment}
