"""From Dynamo's graph to its executable without a trace, where another process made one.

What AOTAutograd and the passes make of a graph is kept in the disk cache under the graph's key:
which executable it came to and how that is called. A trace of a ViT takes half a second, and
importing what traces and lowers another third. Kept are graphs of inference whose results nothing
is done to after the call: static sizes, no argument changed, no result a view of another tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch_max_backend import cache, profiling
from torch_max_backend.compile_statistics import next_name, statistics
from torch_max_backend.executable import CompiledGraph
from torch_max_backend.session import load_models
from torch_max_backend.signature import GraphSignature, RepeatedOutput, TensorOutput
from torch_max_backend.signature_json import signature_from_json, signature_to_json

log = logging.getLogger(__name__)


def knows(key: str) -> bool:
    """Whether the cache has the call and the executable of a graph of Dynamo's."""
    call = cache.load_call(key)
    return call is not None and cache.place(call["graph"]) is not None


def find(key: str) -> Callable[..., list[Any]] | None:
    """What the graph of that key was compiled to; None where the cache does not have all of it."""
    call = cache.load_call(key)
    place = cache.place(call["graph"]) if call is not None else None
    executable = cache.load(place.program) if place is not None else None
    if call is None or place is None or executable is None:
        return None
    name = next_name("inference")
    try:
        signature = signature_from_json(call)
        with profiling.phase(name, "load"):
            model = load_models(executable)[place.position]
        taken, given = len(model.input_metadata), len(model.output_metadata)
        if (taken, given) != (len(signature.inputs), signature.results()):
            raise ValueError(f"it has {taken} inputs and {given} outputs")
    except Exception as error:  # whole, and yet it does not fit: trace and compile anew
        log.warning("cannot load the cached executable of %s: %s", name, error)
        return None
    statistics.cached += 1
    log.info("%s: from the compile cache, not traced", name)
    graph = CompiledGraph(name, None, signature, call["weights"], lambda: model)
    return lambda *args: graph(list(args))


def remember(key: str, graph: str, signature: GraphSignature, weights: Sequence[int]) -> None:
    """Keeps what the graph of a key was traced to, where its call needs no more than that.

    Args:
        graph: what the cache will know it by when it is compiled.
        weights: positions of the arguments that hold parameters and buffers.
    """
    plain = all(isinstance(output, TensorOutput | RepeatedOutput) for output in signature.outputs)
    if plain and not (signature.symbols or signature.computed or signature.checks):
        call = {"graph": graph, "weights": list(weights)}
        cache.store_call(key, {**call, **signature_to_json(signature)})
