"""Environment flags, and that nothing happens without them."""

import logging
import subprocess
import sys

import pytest

from torch_max_backend import flags, profiling

SWITCHES = {"PROFILE": flags.profiling_enabled, "VERBOSE": flags.verbose_enabled}
PREFIXES = ("TORCH_MAX_BACKEND_", "PYTORCH_MAX_BACKEND_")


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    for name in (*SWITCHES, "TRACE", "CACHE_DIR", "CACHE_SIZE"):
        for prefix in PREFIXES:
            monkeypatch.delenv(prefix + name, raising=False)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["1", "true", "True", "TRUE", "yes", "Yes", " 1 "])
def test_on(monkeypatch, prefix, name, value):
    monkeypatch.setenv(prefix + name, value)
    assert SWITCHES[name]()
    assert not any(SWITCHES[other]() for other in SWITCHES if other != name)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [None, "", "0", "false", "no", "off", "2"])
def test_off(monkeypatch, name, value):
    if value is not None:
        monkeypatch.setenv(PREFIXES[0] + name, value)
    assert not SWITCHES[name]()


def test_the_other_name_counts_where_the_first_is_off(monkeypatch):
    monkeypatch.setenv("TORCH_MAX_BACKEND_PROFILE", "0")
    monkeypatch.setenv("PYTORCH_MAX_BACKEND_PROFILE", "yes")
    assert flags.profiling_enabled()


def test_values(monkeypatch):
    assert flags.trace_file() is None
    assert flags.cache_directory() is None
    assert flags.cache_size_limit() == 4 << 30
    monkeypatch.setenv("TORCH_MAX_BACKEND_TRACE", "t.json")
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_DIR", "here")
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_SIZE", "123")
    assert (flags.trace_file(), flags.cache_directory()) == ("t.json", "here")
    assert flags.cache_size_limit() == 123


@pytest.mark.parametrize("value", ["", "4 GB", "-1", "1e9"])
def test_a_size_that_is_none_is_the_default_and_a_warning(monkeypatch, caplog, value):
    """A typo in an environment variable must not end a training run."""
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_SIZE", value)
    with caplog.at_level(logging.WARNING):
        assert flags.cache_size_limit() == 4 << 30
    assert bool(value) == ("TORCH_MAX_BACKEND_CACHE_SIZE" in caplog.text)


def test_profiling_is_on_for_a_table_or_a_trace(monkeypatch):
    assert not profiling.enabled()
    monkeypatch.setenv("TORCH_MAX_BACKEND_TRACE", "t.json")
    assert profiling.enabled()


def test_nothing_is_recorded_without_a_flag(monkeypatch):
    monkeypatch.setattr(profiling, "_registered", True)  # no table at the end of pytest
    with profiling.phase("a-graph-of-this-test", "build"):
        pass
    assert "a-graph-of-this-test" not in profiling.table()


def test_the_table_adds_up(monkeypatch):
    monkeypatch.setattr(profiling, "_registered", True)
    monkeypatch.setattr(profiling, "_seconds", type(profiling._seconds)(_per_graph))
    monkeypatch.setattr(profiling, "_events", [])
    for name, start, end in [("build", 1.0, 1.5), ("compile", 2.0, 4.0)]:
        profiling.record("forward7", name, start, end)
    for duration in (0.001, 0.003, 0.002):
        profiling.record("forward7", "run", 5.0, 5.0 + duration)
    profiling.record("backward8", "compile", 6.0, 7.0)
    rows = [line.split() for line in profiling.table().splitlines()]
    (forward,) = [row for row in rows if row[0] == "forward7"]
    (total,) = [row for row in rows if row[0] == "total"]
    assert forward[1:] == ["0.500", "2.000", "3", "2.000", "2.506"]  # median of the calls: 2 ms
    assert total[1:] == ["0.500", "3.000", "3", "3.506"]


def _per_graph():
    from collections import defaultdict

    return defaultdict(list)


def test_importing_the_package_prints_and_configures_nothing():
    script = (
        "import logging, torch_max_backend\n"
        "assert not logging.getLogger().handlers\n"
        "assert not logging.getLogger('torch_max_backend').handlers\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_processes_started_later_keep_their_packages():
    script = (
        "import subprocess, sys\n"
        "from torch_max_backend.ops.attention import _gpu_kernel\n"
        "_gpu_kernel()\n"
        "subprocess.run([sys.executable, '-c', 'import torch'], check=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
