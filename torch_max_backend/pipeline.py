"""From Dynamo's graph to a callable: AOTAutograd, the passes, compilation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch._dynamo.backends.common import aot_autograd
from torch._guards import TracingContext
from torch.fx import GraphModule

from torch_max_backend import flags, profiling
from torch_max_backend.compilation import compile_graph
from torch_max_backend.composites import replace_composites
from torch_max_backend.decompositions import decompositions
from torch_max_backend.executable import CompiledGraph
from torch_max_backend.garbage import collector_paused
from torch_max_backend.options import MaxOptions
from torch_max_backend.passes import run_passes
from torch_max_backend.report import describe_graph

log = logging.getLogger(__name__)


def compile_program(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    settings: MaxOptions,
    executables: dict[str, bytes] | None = None,
) -> Callable[..., Any]:
    """Dynamo's graph through AOTAutograd.

    Args:
        executables: see :func:`torch_max_backend.compilation.compile_graph`.

    Raises:
        UnsupportedOpsError, LoweringError: the graph cannot be lowered.
    """
    compiler = partial(_compile, settings=settings, executables=executables)
    start = time.perf_counter()
    with collector_paused():
        aot = aot_autograd(
            fw_compiler=partial(compiler, kind="forward", start=start),
            bw_compiler=partial(compiler, kind="backward", start=None),
            inference_compiler=partial(compiler, kind="inference", start=start),
            decompositions=dict(decompositions()),
        )
        return aot(replace_composites(gm), list(example_inputs))


def _compile(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    settings: MaxOptions,
    executables: dict[str, bytes] | None,
    kind: str,
    start: float | None,
) -> Callable[[list[Any]], list[Any]]:
    run_passes(gm)
    if flags.verbose_enabled():
        log.warning("%s graph\n%s", kind, describe_graph(gm))
    traced = time.perf_counter()
    compiled = compile_graph(
        gm, settings, kind=kind, weights=_static_arguments(kind), executables=executables
    )
    if start is not None and profiling.enabled():
        profiling.record(compiled.name, "trace", start, traced)
    return _boxed(compiled) if kind == "backward" else compiled


def _boxed(compiled: CompiledGraph) -> Callable[[list[Any]], list[Any]]:
    """A plain function: Dynamo wraps the backward and copies a callable's attributes."""

    def call(args: list[Any]) -> list[Any]:
        return compiled(args)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _static_arguments(kind: str) -> list[int]:
    """Positions of the arguments that AOTAutograd knows to be parameters and buffers.

    Reads AOTAutograd's metadata; without it every argument is bound anew at each call.
    """
    context = TracingContext.try_get()
    metadata = context.fw_metadata if context is not None else None
    if metadata is None or kind == "backward":
        return []
    return list(getattr(metadata, "static_input_indices", None) or [])
