"""The process that compiles in the background: ``python -m``.

It writes a line when it has started, and reads a list of Requests from its standard input. It
leaves the executables, and how they are called, in the compile cache. Then it writes a JSON list:
for each request what kept it from that, or null.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from torch_max_backend import cache, warm_start
from torch_max_backend.background import Input, Request, TorchSettings
from torch_max_backend.compilation import compile_waiting
from torch_max_backend.dynamo_key import dynamo_key
from torch_max_backend.graph_pickle import fake_inputs, load_dynamo_graph
from torch_max_backend.pipeline import compile_program


def compile_requests(requests: Sequence[Request]) -> list[str | None]:
    """Fills the compile cache, all graphs as one program; for each request why it was not met."""
    errors = [_error_of(trace_request, request) for request in requests]
    refused = _error_of(compile_waiting)
    return [
        error if error or warm_start.knows(request.key) else refused
        for request, error in zip(requests, errors, strict=True)
    ]


def trace_request(request: Request) -> None:
    """Has the graph wait for MAX's compiler.

    Raises:
        RuntimeError: the request means something else here, or the graph must be traced where it
            is called.
    """
    fake_mode = FakeTensorMode(shape_env=ShapeEnv())
    gm = load_dynamo_graph(request.graph, fake_mode)
    fakes = fake_inputs(gm)
    with ExitStack() as modes:
        _apply(request.settings, modes)
        inputs = [_like(fake, told) for fake, told in zip(fakes, request.inputs, strict=True)]
        if dynamo_key(gm, inputs, request.options) != request.key:
            raise RuntimeError("the graph has another key in a process of its own")
        with tracing(TracingContext(fake_mode)):
            compile_program(gm, fakes, request.options, dynamo_key=request.key)
    if cache.load_call(request.key) is None:
        raise RuntimeError(
            "the graph changes its arguments or returns views, or the cache cannot be written"
        )


def _apply(settings: TorchSettings, modes: ExitStack) -> None:
    torch._functorch.config.load_config(settings.aot_autograd)
    torch.set_default_dtype(settings.default_dtype)
    torch.set_float32_matmul_precision(settings.matmul_precision)
    torch.use_deterministic_algorithms(settings.deterministic)
    modes.enter_context(torch.inference_mode(settings.inference))
    modes.enter_context(torch.set_grad_enabled(settings.grad))
    for kind, enabled, dtype in settings.autocast:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


def _like(fake: torch.Tensor, told: Input) -> torch.Tensor:
    """A tensor of that kind; its memory is never touched."""
    with torch.inference_mode(told.is_inference):
        value = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)
        if told.is_parameter:
            return torch.nn.Parameter(value, requires_grad=told.requires_grad)
        return value.requires_grad_(told.requires_grad)


def _error_of(function: Callable[..., object], *args: object) -> str | None:
    """What a call raises, in a line."""
    try:
        function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return None


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    print("ready", file=answers, flush=True)
    requests = pickle.load(sys.stdin.buffer)
    json.dump(compile_requests(requests), answers)
    answers.close()


if __name__ == "__main__":
    main()
