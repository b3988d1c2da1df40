"""That the workers of MAX and of PyTorch make way for each other."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tracing import trace
from torch_max_backend import executable
from torch_max_backend.executable import LONG_RUN, CompiledGraph
from torch_max_backend.signature_reading import read_signature
from torch_max_backend.threads import end_openmp_threads

NAMES = ("MODULAR_THREAD_BUSY_WAIT_US", "MODULAR_RUNTIME_THREAD_BUSY_WAIT_TIME_US")


START = (
    "from max.driver import CPU; from max.engine import InferenceSession; InferenceSession([CPU()])"
)


def run_in_another_process(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=kept | variables, capture_output=True, text=True)


def started_with(first: str, **variables: str) -> list[str]:
    """What another process, in which a session of MAX starts after us, has in ``NAMES``."""
    end = f"import os; print(*[os.environ.get(name) for name in {NAMES}])"
    done = run_in_another_process(
        "\n".join([first, "import torch_max_backend", START, end]), **variables
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("name", NAMES)
def test_max_reads_either_name(name: str) -> None:
    """They are private. MAX aborts a process that finds other values under the two."""
    assert run_in_another_process(START, **{name: "50"}).returncode != 0


def test_busy_wait_is_short_unless_the_user_sets_it() -> None:
    assert started_with("") == ["70", "70"]
    for name in NAMES:
        assert started_with("", **{name: "50"}) == ["50", "50"]


def test_busy_wait_stays_where_max_has_been_imported() -> None:
    first = "from max.driver import CPU; CPU()"
    assert started_with(first) == ["None", "None"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_openmp_threads_end_and_start_anew() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/task"))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = torch.randn(1 << 20)
        for _ in range(2):
            got = x.exp().sum()
            running = count()
            end_openmp_threads()
            assert count() < running
        torch.testing.assert_close(got, x.double().exp().sum().float())
    finally:
        torch.set_num_threads(before)


def test_openmp_threads_end_before_long_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    clock, lasts = [0.0], [0.0]

    def execute(model: Any, buffers: list[Any]) -> list[Any]:
        events.append("run")
        clock[0] += lasts[0]
        return buffers

    monkeypatch.setattr(executable, "execute_buffers", execute)
    monkeypatch.setattr(executable, "end_openmp_threads", lambda: events.append("end"))
    monkeypatch.setattr(executable, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    x = torch.randn(3)
    gm = trace(lambda x: x + 1, x)
    model: Any = SimpleNamespace(devices=[])
    graph = CompiledGraph("inference", gm, read_signature(gm), (), lambda: model)
    for seconds in (LONG_RUN / 2, LONG_RUN * 2, LONG_RUN / 2, LONG_RUN / 2):
        lasts[0] = seconds
        graph([x])
    assert events == ["run", "run", "end", "run", "run"]
