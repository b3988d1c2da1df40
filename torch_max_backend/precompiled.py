"""``torch.compile(..., backend="max").aot_compile``: what PyTorch saves of a compiled function.

Saved are Dynamo's graph and the executables of the graphs that AOTAutograd makes of it. Loading
traces the graph anew, which takes seconds, and finds its executables by their fingerprints.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._dynamo.aot_compile_types import SerializableCallable
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from torch_max_backend.graph_pickle import fake_inputs, load_dynamo_graph, save_dynamo_graph
from torch_max_backend.options import MaxOptions
from torch_max_backend.pipeline import compile_program


def _without_autograd_cache() -> AbstractContextManager[Any]:
    """AOTAutograd's own way of saving, which ``aot_compile`` turns on, is for Inductor's code."""
    return torch._functorch.config.patch(
        bundled_autograd_cache=False, force_autograd_cache=False, strict_autograd_cache=False
    )


class PrecompiledFunction(SerializableCallable):
    """A compiled function and the bytes that it can be made from in another process."""

    def __init__(self, function: Callable[..., Any], saved: bytes) -> None:
        self._function = function
        self._saved = saved

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    @classmethod
    def serialize_compile_artifacts(cls, fn: PrecompiledFunction) -> bytes:
        """What ``deserialize_compile_artifacts`` takes; a pickle: load what you trust."""
        return fn._saved

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> PrecompiledFunction:
        """The function; MAX compiles only what was saved by another release, or elsewhere."""
        state = pickle.loads(data)
        fake_mode = FakeTensorMode(shape_env=ShapeEnv())
        gm = load_dynamo_graph(state["graph"], fake_mode)
        with tracing(TracingContext(fake_mode)), torch.set_grad_enabled(state["grad"]):
            function = compile_program(gm, fake_inputs(gm), state["options"], state["executables"])
        return cls(function, data)


def precompile(
    gm: GraphModule, example_inputs: Sequence[Any], options: MaxOptions
) -> PrecompiledFunction:
    """Compiles now what the function will need.

    Raises:
        UnsupportedOpsError, LoweringError, CompileError: as max_backend, and MAX's refusal.
    """
    state: dict[str, Any] = {
        "graph": save_dynamo_graph(gm),
        "options": options,
        "grad": torch.is_grad_enabled(),
        "executables": {},
    }
    with _without_autograd_cache():
        function = compile_program(gm, example_inputs, options, state["executables"])
    return PrecompiledFunction(function, pickle.dumps(state))
