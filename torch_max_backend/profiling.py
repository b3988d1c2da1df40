"""Timings per graph (TORCH_MAX_BACKEND_PROFILE, TORCH_MAX_BACKEND_TRACE); a table at exit."""

from __future__ import annotations

import atexit
import json
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tabulate import tabulate

from torch_max_backend import flags
from torch_max_backend.replacing import replacing

PHASES = ("trace", "build", "cache", "compile", "load", "bind", "run", "unbind")

_lock = threading.Lock()
_seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
_events: list[dict[str, Any]] = []
_registered = False


def enabled() -> bool:
    """Whether a timing is wanted; read once per graph, not per call."""
    return flags.profiling_enabled() or flags.trace_file() is not None


@contextmanager
def phase(graph: str, name: str) -> Iterator[None]:
    """Times a block as one phase of a graph, when profiling is on."""
    if not enabled():
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        record(graph, name, start, time.perf_counter())


def record(graph: str, name: str, start: float, end: float) -> None:
    """Adds one timing; ``start`` and ``end`` are time.perf_counter() seconds."""
    global _registered
    with _lock:
        _seconds[graph][name].append(end - start)
        _events.append(
            {
                "name": f"{graph} {name}",
                "cat": name,
                "ph": "X",
                "ts": start * 1e6,
                "dur": (end - start) * 1e6,
                "pid": os.getpid(),
                "tid": threading.get_ident(),
            }
        )
        if not _registered:
            _registered = True
            atexit.register(report_at_exit)


def reset() -> None:
    """Forgets all timings."""
    with _lock:
        _seconds.clear()
        _events.clear()


def timings() -> dict[str, dict[str, list[float]]]:
    """Seconds of every phase of every graph."""
    with _lock:
        return {graph: dict(phases) for graph, phases in _seconds.items()}


def table() -> str:
    """One row per graph: seconds per compile phase, calls, milliseconds per call, totals."""
    once, per_call = PHASES[:5], PHASES[5:]
    rows: list[list[Any]] = []
    with _lock:
        for graph, phases in _seconds.items():
            calls = len(phases["run"])
            medians = [_median_ms(phases[name]) for name in per_call]
            rows.append([graph, *(_total(phases[n]) for n in once), calls, *medians])
            rows[-1].append(sum(sum(phases[name]) for name in PHASES))
    if rows:
        rows.append(["total", *(_column(rows, i) for i in range(1, 7)), None, None, None])
        rows[-1].append(sum(row[-1] for row in rows[:-1]))
    headers = ["graph", *(f"{n} s" for n in once), "calls", *(f"{n} ms" for n in per_call)]
    return tabulate(rows, headers=[*headers, "total s"], floatfmt=".3f")


def _total(values: list[float]) -> float | None:
    return sum(values) if values else None


def _median_ms(values: list[float]) -> float | None:
    return statistics.median(values) * 1e3 if values else None


def _column(rows: list[list[Any]], index: int) -> Any:
    values = [row[index] for row in rows if row[index] is not None]
    return sum(values) if values else None


def write_trace(path: str) -> None:
    """Writes the timings as a Chrome trace (chrome://tracing, Perfetto)."""
    with _lock, replacing(Path(path)) as new, new.open("w") as file:
        json.dump({"traceEvents": _events}, file)


def report_at_exit() -> None:
    """What the two flags ask for at the end of the process."""
    if flags.profiling_enabled() and _seconds:
        print(f"\ntorch_max_backend profile\n{table()}", file=sys.stderr)
    if flags.trace_file():
        write_trace(str(flags.trace_file()))
