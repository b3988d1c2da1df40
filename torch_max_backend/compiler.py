"""max_backend: the entry from torch.compile.

What traces and lowers is imported when a graph is not in the compile cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch._dynamo  # torch.compile would import it, with the collector running
from torch.fx import GraphModule

from torch_max_backend import flags, warm_start
from torch_max_backend.background import BackgroundCall, can_wait
from torch_max_backend.dynamo_key import dynamo_key
from torch_max_backend.garbage import first_trace, imported
from torch_max_backend.options import MaxOptions

torch._dynamo.on_compile_start(first_trace.start)
torch._dynamo.on_compile_end(first_trace.end)


def max_backend(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | MaxOptions | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The ``torch.compile`` backend: Dynamo's graph to a callable that runs on MAX.

    Args:
        gm: the graph Dynamo captured.
        example_inputs: its (fake) inputs.
        options: see :class:`torch_max_backend.MaxOptions`.
        mode: ``torch.compile``'s mode; only None and "default" mean something here.

    Raises:
        OptionError: unknown option or mode; ``freeze`` where gradients are needed.
        UnsupportedOpsError, LoweringError: the graph cannot be lowered.
    """
    settings = MaxOptions.from_mapping(options, mode)
    if _aot_compile_is_calling():
        precompiled = imported("torch_max_backend.precompiled")
        return precompiled.precompile(gm, example_inputs, settings)
    key = None
    # what the verbose flag logs and what is frozen comes of a trace
    if settings.cache and not settings.freeze and not flags.verbose_enabled():
        key = dynamo_key(gm, example_inputs, settings)
    found = warm_start.find(key) if key is not None else None
    if found is not None:
        return found

    def trace(inputs: Sequence[Any]) -> Callable[..., Any]:
        pipeline = imported("torch_max_backend.pipeline")
        return pipeline.compile_program(gm, inputs, settings, dynamo_key=key)

    if settings.compile == "background" and key is not None and can_wait(example_inputs):
        return BackgroundCall(gm, example_inputs, settings, key, trace)
    return trace(example_inputs)


def _aot_compile_is_calling() -> bool:
    """It says so in AOTAutograd's settings."""
    return bool(torch._functorch.config.bundled_autograd_cache)
