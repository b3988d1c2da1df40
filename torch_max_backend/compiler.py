"""max_backend: the entry from torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from torch_max_backend import precompiled
from torch_max_backend.options import MaxOptions
from torch_max_backend.pipeline import compile_program


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
        OptionError: unknown option or mode.
        UnsupportedOpsError, LoweringError: the graph cannot be lowered.
    """
    settings = MaxOptions.from_mapping(options, mode)
    if precompiled.is_wanted():
        return precompiled.precompile(gm, example_inputs, settings)
    return compile_program(gm, example_inputs, settings)
