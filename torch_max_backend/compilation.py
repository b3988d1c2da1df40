"""Graphs to MAX executables: pending graphs of one program, the session, the disk cache.

Graphs that are waiting when the first of them is run (several compiled functions, a forward and a
backward with dynamic sizes) are compiled as one MAX module: the fixed cost of a compile, 10 to
15 s, is paid once. With static sizes AOTAutograd hands over the backward when it is first run.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from max import driver
from max.engine import CompiledModel, Model
from max.graph import Graph, Module
from torch.fx import GraphModule

from torch_max_backend import cache, flags, profiling, warm_start
from torch_max_backend.compile_statistics import next_name, statistics
from torch_max_backend.context import mlir_context
from torch_max_backend.cpu import NATIVE, cpu_target
from torch_max_backend.environment import program_key
from torch_max_backend.errors import CompileError
from torch_max_backend.executable import CompiledGraph
from torch_max_backend.fingerprint import graph_fingerprint
from torch_max_backend.frozen_part import FrozenPart
from torch_max_backend.graph_builder import build_graph, check_supported
from torch_max_backend.heap import return_free_memory
from torch_max_backend.kernel_library import kernel_library
from torch_max_backend.options import MaxOptions
from torch_max_backend.session import load_model, load_models, session
from torch_max_backend.signature_reading import read_signature

log = logging.getLogger(__name__)


class _Turns:
    """Compiles for this machine may run beside each other, one for another machine runs alone:
    MAX's target is the whole process's."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._running = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            self._running += 1
        try:
            yield
        finally:
            with self._condition:
                self._running -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._running == 0)
            yield


_turns = _Turns()


def _compiled(module: Module) -> CompiledModel:
    """MAX's compile of a module, for the processor that this thread makes code for."""

    def compiled() -> CompiledModel:
        model = session().compile(module, custom_extensions=[kernel_library()])
        return_free_memory()
        return model

    if (cpu := cpu_target()) == NATIVE:
        with _turns.shared():
            return compiled()
    with _turns.alone():
        before = driver.get_virtual_cpu_target()
        driver.set_virtual_cpu_target(cpu)
        try:
            return compiled()
        finally:
            driver.set_virtual_cpu_target(before)


class _Pending:
    """One graph of a program, and what has become of it."""

    def __init__(self, name: str, gm: GraphModule, key: str, options: MaxOptions) -> None:
        self.name = name
        self.gm = gm
        self.options = options
        self.key = key
        self.model: Model | None = None
        self.error: Exception | None = None

    @property
    def marker(self) -> str:
        """What the cache knows it by: the key of a program of this graph alone."""
        return program_key([self.key])


class Program:
    """Graphs that are compiled together, at the first run that needs one of them."""

    def __init__(self) -> None:
        self.graphs: list[_Pending] = []
        self._module = Module()
        self._built: list[_Pending] = []
        self._lock = threading.Lock()
        self._thread_lock = threading.Lock()
        self._sealed = False
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._use_cache = True

    def add(self, graph: _Pending) -> bool:
        """Takes a graph in; False when the program is being compiled already.

        A graph that the cache does not know is lowered now, so that errors come from the compile;
        in background mode that, too, is left to the thread.
        """
        with self._lock:
            if self._sealed:
                return False
            self._use_cache = self._use_cache and graph.options.cache
            known = graph.options.cache and cache.place(graph.marker) is not None
            if not known and graph.options.compile != "background":
                self._build(graph)
            self.graphs.append(graph)
            return True

    def _build(self, graph: _Pending) -> None:
        """MAX identifies the graphs of a module by position alone: their names carry nothing."""
        name = f"g{len(self._built)}"
        try:
            with profiling.phase(graph.name, "build"):
                built, _ = build_graph(graph.gm, self._module, name, graph.options)
        except Exception:
            self._module, self._built = Module(), []  # half a graph is in the module
            raise
        _log_graph(graph.name, built)
        self._built.append(graph)

    def model(self, graph: _Pending) -> Model:
        """The model of a graph; compiles the program unless that was done.

        Raises:
            CompileError: MAX refused this graph.
        """
        self._ensure_compiled()
        if graph.error is not None:
            raise graph.error
        assert graph.model is not None
        return graph.model

    def poll(self, graph: _Pending) -> Model | None:
        """The model if it is ready, else None."""
        return self.model(graph) if self._done.is_set() else None

    def start(self) -> None:
        """Compiles in a thread, unless that was started."""
        with self._thread_lock:
            if self._thread is None:
                _retire(self)
                names = ", ".join(graph.name for graph in self.graphs)
                log.info("compiling %s in the background, answering with eager", names)
                # no daemon: MAX crashes where the process ends under its compiler
                self._thread = threading.Thread(target=self._in_background)
                self._thread.start()

    def _in_background(self) -> None:
        start = time.perf_counter()
        try:
            self._ensure_compiled()
        except Exception as error:
            for graph in self.graphs:
                graph.error = graph.error or error
            self._done.set()
        names = ", ".join(graph.name for graph in self.graphs)
        seconds = time.perf_counter() - start
        if any(graph.error for graph in self.graphs):
            log.warning("the compile of %s failed after %.1f s", names, seconds)
        else:
            log.info("%s ready after %.1f s, switching to MAX", names, seconds)

    @mlir_context()
    def _ensure_compiled(self) -> None:
        if self._done.is_set():
            return
        _retire(self)
        with self._lock:
            if self._done.is_set():
                return
            self._sealed = True
            self._compile()
            self._done.set()

    def _compile(self) -> None:
        if self._use_cache:
            self._load_cached()
        if all(graph.model is not None for graph in self.graphs):
            return
        self._build_missing()
        if self._built:
            _compile_module(self._module, self._built, self._use_cache)

    def _build_missing(self) -> None:
        """Lowers what was not; a graph that cannot be lowered keeps its error."""
        for graph in self.graphs:
            if graph in self._built or graph.model is not None or graph.error is not None:
                continue
            try:
                self._build(graph)
            except Exception as error:
                graph.error = error
                self._build_missing()  # those built before are lost with it

    def _load_cached(self) -> None:
        """Loads the graphs that the cache has, compiled in this program or in others."""
        name = self.graphs[0].name
        with profiling.phase(name, "cache"):
            places = [(graph, cache.place(graph.marker)) for graph in self.graphs]
            programs = {place.program: cache.load(place.program) for _, place in places if place}
        with profiling.phase(name, "load"):
            models = {key: _loaded(key, found) for key, found in programs.items() if found}
        for graph, place in places:
            if place is None or not (loaded := models.get(place.program)):
                continue
            graph.model = loaded[place.position]
            if graph not in self._built:
                _log_graph(graph.name, "not built: its executable is in the compile cache")
            _log_kernels(graph.name, graph.model)
            statistics.cached += 1
            log.info("%s: from the compile cache", graph.name)


def _loaded(key: str, executable: bytes) -> list[Model] | None:
    try:
        return load_models(executable)
    except Exception as error:  # whole, and yet MAX does not take it: compile anew
        log.warning("MAX cannot load the cached executable %s: %s", key, error)
        return None


@mlir_context()
def compile_ahead(gm: GraphModule, options: MaxOptions) -> bytes:
    """MAX's executable of one graph, from the disk cache where that has it; nothing is loaded.

    Raises:
        UnsupportedOpsError, LoweringError: see graph_builder.
        CompileError: MAX refused the graph.
    """
    check_supported(gm)
    graph = _Pending("export", gm, graph_fingerprint(gm, options), options)
    key = program_key([graph.key])
    known = cache.load(key) if options.cache else None
    if known is not None:
        return known
    module = Module()
    build_graph(gm, module, "g0", options)
    try:
        executable = _executable(_compiled(module))
    except Exception as error:
        raise _refused(graph, error) from error
    if options.cache:
        cache.store(key, executable, [graph.marker])
    return executable


def _executable(compiled: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.mef"
        compiled.export_mef(path)
        return path.read_bytes()


def _compile_module(module: Module, graphs: Sequence[_Pending], use_cache: bool) -> None:
    """Compiles, stores and loads graphs of one module. One that MAX refuses keeps its error.

    MAX does not say which graph of a module it refuses: halves are compiled until it is found.
    """
    start = time.perf_counter()
    try:
        with profiling.phase(graphs[0].name, "compile"):
            compiled = _compiled(module)
    except Exception as error:
        if len(graphs) == 1:
            graphs[0].error = _refused(graphs[0], error)
        else:
            middle = len(graphs) // 2
            for half in (graphs[:middle], graphs[middle:]):
                _compile_module(_built_anew(half), half, use_cache)
        return
    statistics.seconds += time.perf_counter() - start
    statistics.compiled += len(graphs)
    with profiling.phase(graphs[0].name, "load"):
        models = list(session().init_all(compiled).values())
    for graph, model in zip(graphs, models, strict=True):
        graph.model = model
        _log_kernels(graph.name, model)
    if use_cache:
        key = program_key([graph.key for graph in graphs])
        cache.store(key, _executable(compiled), [graph.marker for graph in graphs])


def _built_anew(graphs: Sequence[_Pending]) -> Module:
    module = Module()
    for position, graph in enumerate(graphs):
        build_graph(graph.gm, module, f"g{position}", graph.options)
    return module


def _refused(graph: _Pending, error: Exception) -> CompileError:
    refused = CompileError(
        f"MAX could not compile {graph.name}, although every operator of it was lowered: {error}\n"
        "Set TORCH_MAX_BACKEND_VERBOSE=1 to see the graph, and MODULAR_DEBUG=source-tracebacks "
        "for MAX's own account."
    )
    refused.__cause__ = error
    return refused


_open: list[Program] = []
_open_lock = threading.Lock()


def _retire(program: Program) -> None:
    """Closes a program to new graphs."""
    with _open_lock:
        if program in _open:
            _open.remove(program)


def compile_waiting() -> None:
    """Compiles the graphs that wait for a first run.

    Raises:
        CompileError: MAX refused one of them.
    """
    for program in list(_open):
        for graph in program.graphs:
            program.model(graph)


def _submit(pending: _Pending) -> Program:
    while True:
        with _open_lock:
            if not _open:
                _open.append(Program())
            program = _open[0]
        if program.add(pending):
            return program
        _retire(program)


@mlir_context()
def compile_graph(
    gm: GraphModule,
    options: MaxOptions,
    *,
    kind: str = "graph",
    weights: Sequence[int] = (),
    executables: dict[str, bytes] | None = None,
    dynamo_key: str | None = None,
    frozen: FrozenPart | None = None,
) -> CompiledGraph:
    """A callable for one AOTAutograd graph; MAX compiles it at the first call.

    Args:
        gm: an AOTAutograd graph of ATen overloads.
        kind: "forward", "backward" or "inference", for names in logs and profiles.
        weights: positions of the arguments that hold parameters and buffers.
        executables: by fingerprint; with it the graph's executable is taken from there, or
            compiled now and added.
        dynamo_key: of Dynamo's graph, where this one's arguments and results are that one's.
        frozen: what was taken out of the graph.

    Raises:
        UnsupportedOpsError, LoweringError: see graph_builder.
    """
    check_supported(gm)
    pending = _Pending(next_name(kind), gm, graph_fingerprint(gm, options), options)
    signature = read_signature(gm)
    if executables is not None:
        if pending.key not in executables:
            executables[pending.key] = compile_ahead(gm, options)
        executable = executables[pending.key]
        prepare = partial(load_model, executable)
        return CompiledGraph(pending.name, None, signature, weights, prepare, frozen=frozen)
    program = _submit(pending)
    if dynamo_key is not None:
        warm_start.remember(dynamo_key, pending.marker, signature, weights)
    if options.compile == "background":
        poll = partial(program.poll, pending)
        return CompiledGraph(pending.name, gm, signature, weights, poll, program.start, frozen)
    wait = partial(program.model, pending)
    return CompiledGraph(pending.name, gm, signature, weights, wait, frozen=frozen)


def _log_graph(name: str, graph: Graph | str) -> None:
    if flags.verbose_enabled():
        log.warning("MAX graph of %s:\n%s", name, graph)


def _log_kernels(name: str, model: Model) -> None:
    if flags.verbose_enabled():
        log.warning("fused kernels of %s:\n%s", name, "\n".join(map(str, model.kernel_summaries)))
