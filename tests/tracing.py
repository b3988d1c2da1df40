"""AOTAutograd graphs for tests that need no MAX compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule

from torch_max_backend.composites import replace_composites
from torch_max_backend.decompositions import decompositions
from torch_max_backend.passes import run_passes


def trace(function: Callable[..., Any], *args: Any, dynamic: bool = False) -> GraphModule:
    """The first graph that ``max_backend`` would compile for a call; the call itself is eager."""
    captured: list[GraphModule] = []

    def keep(gm: GraphModule, example_inputs: Any) -> Any:
        run_passes(gm)
        captured.append(gm)
        return make_boxed_func(gm.forward)

    def backend(gm: GraphModule, example_inputs: Any) -> Any:
        aot = aot_autograd(
            fw_compiler=keep, inference_compiler=keep, decompositions=dict(decompositions())
        )
        return aot(replace_composites(gm), example_inputs)

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(*args)
    torch._dynamo.reset()
    return captured[0]
