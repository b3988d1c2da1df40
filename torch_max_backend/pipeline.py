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
from torch_max_backend.errors import OptionError
from torch_max_backend.executable import CompiledGraph
from torch_max_backend.freezing import freeze
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
    dynamo_key: str | None = None,
) -> Callable[..., Any]:
    """Dynamo's graph through AOTAutograd.

    Args:
        executables, dynamo_key: see :func:`torch_max_backend.compilation.compile_graph`.

    Raises:
        OptionError: ``freeze`` where gradients are needed.
        UnsupportedOpsError, LoweringError: the graph cannot be lowered.
    """
    compiler = partial(_compile, settings=settings, executables=executables, dynamo_key=dynamo_key)
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
    dynamo_key: str | None,
    kind: str,
    start: float | None,
) -> Callable[[list[Any]], list[Any]]:
    run_passes(gm, settings)
    if flags.verbose_enabled():
        log.warning("%s graph\n%s", kind, describe_graph(gm))
    traced = time.perf_counter()
    metadata = _metadata()
    frozen = None
    if settings.freeze:
        if kind != "inference":
            raise OptionError(
                "freeze=True is for inference, this call would be trained: call it under "
                "torch.no_grad() or torch.inference_mode(), or leave freeze out"
            )
        frozen = freeze(gm, _unchanged_arguments(gm, metadata))
    compiled = compile_graph(
        gm,
        settings,
        kind=kind,
        weights=_static_arguments(metadata) if kind != "backward" else [],
        executables=executables,
        dynamo_key=dynamo_key if kind == "inference" and _is_called_plainly(metadata) else None,
        frozen=frozen,
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


def _metadata() -> Any:
    """What AOTAutograd knows of the graph that it is tracing, None where it does not say."""
    context = TracingContext.try_get()
    return context.fw_metadata if context is not None else None


def _static_arguments(metadata: Any) -> list[int]:
    """Positions of the arguments that AOTAutograd knows to be parameters and buffers.

    Without them every argument is bound anew at each call.
    """
    return list(getattr(metadata, "static_input_indices", None) or [])


def _unchanged_arguments(gm: GraphModule, metadata: Any) -> list[int]:
    """Of the static arguments those that the model itself does not change."""
    static = _static_arguments(metadata)
    if not static:
        return []
    changed = [i for i, found in enumerate(metadata.input_info) if _is_changed(found)]
    if changed and len(metadata.input_info) != len(gm.graph.find_nodes(op="placeholder")):
        # it describes tensor subclasses, the graph has the tensors in them
        log.warning(
            "nothing is frozen: the model changes buffers, and has tensors of other classes"
        )
        return []
    return [i for i in static if i not in changed]


def _is_changed(argument: Any) -> bool:
    """Whether a call changes the argument, as AOTAutograd describes that one."""
    return bool(
        argument.mutates_data or argument.mutates_metadata or argument.mutates_storage_metadata
    )


def _is_called_plainly(metadata: Any) -> bool:
    """Whether AOTAutograd hands arguments and results through as they are: none of the arguments
    is changed, none of the results is a view of another tensor."""
    from torch._functorch._aot_autograd.schemas import OutputType

    if metadata is None or metadata.tokens or metadata.num_intermediate_bases:
        return False
    changed = any(map(_is_changed, metadata.input_info))
    kinds = {found.output_type for found in metadata.output_info}
    return not changed and kinds <= {OutputType.non_alias}
