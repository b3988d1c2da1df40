"""AOTAutograd graphs for tests that need no MAX compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule

from torch_max_backend.aot.gpu_target import move_to_gpu
from torch_max_backend.composites import replace_composites
from torch_max_backend.decompositions import decompositions
from torch_max_backend.options import MaxOptions
from torch_max_backend.passes import run_passes


def aot_backend(compiler: Callable[..., Any]) -> Callable[..., Any]:
    """A backend that has AOTAutograd's graphs, traced as ``max_backend`` does, compiled so."""
    aot = aot_autograd(
        fw_compiler=compiler, inference_compiler=compiler, decompositions=dict(decompositions())
    )
    return lambda gm, example_inputs: aot(replace_composites(gm), example_inputs)


def trace(
    function: Callable[..., Any],
    *args: Any,
    dynamic: bool = False,
    on_gpu: bool = False,
    settings: MaxOptions | None = None,
) -> GraphModule:
    """The first graph that ``max_backend`` would compile for a call; the call itself is eager.

    With ``on_gpu`` the graph is one of the GPU, which need not be there.
    """
    captured: list[GraphModule] = []

    def keep(gm: GraphModule, example_inputs: Any) -> Any:
        captured.append(gm)
        return make_boxed_func(gm.forward)

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=aot_backend(keep), fullgraph=True, dynamic=dynamic)(*args)
    torch._dynamo.reset()
    if on_gpu:
        move_to_gpu(captured[0])
    run_passes(captured[0], settings)
    return captured[0]


def recording(graphs: list[GraphModule]) -> Callable[..., Any]:
    """A backend that answers with the graphs after the passes in eager PyTorch, as background mode
    does, and puts them in a list."""

    def compiler(gm: GraphModule, example_inputs: Any) -> Any:
        run_passes(gm)
        graphs.append(gm)
        return make_boxed_func(gm.forward)

    return aot_backend(compiler)


def answered(
    function: Callable[..., Any], *args: Any, dynamic: bool | None = False
) -> tuple[GraphModule, Any]:
    """The graph after the passes, and what it gives in eager PyTorch."""
    graphs: list[GraphModule] = []
    backend = recording(graphs)
    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(*args)
    torch._dynamo.reset()
    return graphs[0], got
