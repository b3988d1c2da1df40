"""The process that compiles in the background: ``python -m``, a Request on its standard input.

It leaves the executable, and how it is called, in the compile cache. What keeps it from that is the
last line of its standard error, and its exit status 1.
"""

from __future__ import annotations

import pickle
import sys
from contextlib import ExitStack

import torch
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from torch_max_backend import cache
from torch_max_backend.background import Input, Request, TorchSettings
from torch_max_backend.compilation import compile_waiting
from torch_max_backend.dynamo_key import dynamo_key
from torch_max_backend.graph_pickle import fake_inputs, load_dynamo_graph
from torch_max_backend.pipeline import compile_program


def compile_request(request: Request) -> None:
    """Fills the compile cache.

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
        compile_waiting()


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


def main() -> int:
    request = pickle.load(sys.stdin.buffer)
    try:
        compile_request(request)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
