"""What shows only from one process to the next: the disk cache, the flags, lazy imports.

One small model is compiled once, by the first process; the others start from the cache.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MODEL = '''
"""A model with an operator of the user's, and its lowering."""
import torch
from torch import nn
from torch_max_backend import register_lowering


@torch.library.custom_op("user_operators::tripled", mutates_args=())
def tripled(x: torch.Tensor) -> torch.Tensor:
    return x * 3


@tripled.register_fake
def _(x):
    return torch.empty_like(x)


@register_lowering(torch.ops.user_operators.tripled.default)
def lower(x):
    return x + x + x


class Model(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 8))

    def forward(self, x):
        return tripled(super().forward(x))


def make():
    torch.manual_seed(7)
    return Model(), torch.randn(5, 32)
'''

RUN = """
import json, sys
import torch
from user_model import make
from torch_max_backend.compile_statistics import statistics

if "no-compile" in sys.argv:
    from max.engine import InferenceSession

    def refuse(*args, **kw):
        raise AssertionError("MAX was asked to compile")

    InferenceSession.compile = InferenceSession.load = refuse

model, x = make()
run = torch.compile(model, backend="max", fullgraph=True)
with torch.no_grad():
    result = [run(x) for _ in range(3)][-1]
    error = (result - model(x)).abs().max().item()
print("RESULT", json.dumps({
    "bytes": result.numpy().tobytes().hex(),
    "error": error,
    "compiled": statistics.compiled,
    "cached": statistics.cached,
    "seconds": statistics.seconds,
}))
"""

LOGGED = """
import logging

logged = []
logger = logging.getLogger("torch_max_backend")
logger.setLevel(logging.INFO)
handler = logging.Handler()
handler.emit = lambda record: logged.append(record.getMessage())
logger.addHandler(handler)
"""

BACKGROUND = (
    LOGGED
    + """
import json, threading, time
import torch
from user_model import make
from torch_max_backend import compilation
from torch_max_backend.session import session

go = threading.Event()
compile_ = compilation.Program._compile

def slow(self):
    go.wait()
    compile_(self)

compilation.Program._compile = slow
model, x = make()
run = torch.compile(model, backend="max", fullgraph=True, options={"compile": "background"})
with torch.no_grad():
    before = [run(x) for _ in range(3)]
    eager = model(x)
    waiting = list(logged)
    go.set()
    deadline = time.monotonic() + 300
    while not any("switching" in line for line in logged) and time.monotonic() < deadline:
        time.sleep(0.05)
    after = run(x)

    # the same with a compiler that fails
    def fail(*args, **kw):
        raise RuntimeError("the compiler is broken today")

    session().compile = fail
    torch._dynamo.reset()
    options = {"compile": "background", "cache": False}
    run = torch.compile(model, backend="max", fullgraph=True, options=options)
    answered = run(x)
    errors = []
    deadline = time.monotonic() + 60
    while not errors and time.monotonic() < deadline:
        try:
            run(x)
        except Exception as error:
            errors.append(error)
        time.sleep(0.05)
    try:
        run(x)
    except Exception as error:
        errors.append(error)
print("RESULT", json.dumps({
    "eager before": all(torch.equal(r, eager) for r in before),
    "error after": (after - eager).abs().max().item(),
    "bytes": after.numpy().tobytes().hex(),
    "waiting": waiting,
    "logged": logged,
    "answered": torch.equal(answered, eager),
    "kinds": [type(e).__name__ for e in errors],
    "messages": [str(e) for e in errors],
    "causes": [str(e.__cause__) for e in errors],
}))
"""
)

PYTEST = """
import torch
from user_model import make


def test_model():
    model, x = make()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="max")(x), model(x))
"""


class Child:
    """A finished process."""

    def __init__(self, done: subprocess.CompletedProcess) -> None:
        self.stdout, self.stderr = done.stdout, done.stderr
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    @property
    def result(self) -> dict:
        return json.loads(self.stdout.split("RESULT ")[1].splitlines()[0])


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Runs python in a folder with the model, a cache of its own and the given flags."""
    folder = tmp_path_factory.mktemp("processes")
    for name, text in [("user_model", MODEL), ("run", RUN), ("background", BACKGROUND)]:
        (folder / f"{name}.py").write_text(text)
    (folder / "test_user_model.py").write_text(PYTEST)

    def run(*arguments, timeout=560, **flags):
        env = {k: v for k, v in os.environ.items() if "TORCH_MAX_BACKEND_" not in k}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
        env["TORCH_MAX_BACKEND_CACHE_DIR"] = str(folder / "cache")
        env.update({f"TORCH_MAX_BACKEND_{name}": value for name, value in flags.items()})
        return Child(
            subprocess.run(
                [sys.executable, *arguments],
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        )

    return run


@pytest.fixture(scope="module")
def cold(start):
    """The process that compiles; it says everything it does."""
    return start("run.py", VERBOSE="1")


@pytest.fixture(scope="module")
def warm(start, cold, tmp_path_factory):
    """A second process, in which MAX's compiler refuses to work."""
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    child = start("run.py", "no-compile", PROFILE="1", TRACE=str(path))
    child.trace = path
    return child


# -------------------------------------------------------------------------------------- cache


def test_the_first_process_compiles(cold):
    """The operator of the user's among them: its lowering is right if the numbers are."""
    assert (cold.result["compiled"], cold.result["cached"]) == (1, 0)
    assert cold.result["error"] < 1e-5


def test_the_second_process_does_not(cold, warm):
    assert (warm.result["compiled"], warm.result["cached"]) == (0, 1)
    assert warm.result["seconds"] == 0


def test_both_agree_bit_for_bit(cold, warm):
    assert warm.result["bytes"] == cold.result["bytes"]


# -------------------------------------------------------------------------------------- flags


def test_verbose_shows_the_graphs_and_the_kernels(cold):
    text = cold.stderr
    for part in (
        "torch_max_backend.linear_activation.default",  # the FX graph
        "user_operators.tripled.default",
        "float32[5, 32]",
        "MAX graph of inference0",
        "torch_max_backend.linear",
        "fused kernels of inference0",
    ):
        assert part in text, part
    counts = text[text.index("operator ") :]
    (addmm,) = [line for line in counts.splitlines() if line.startswith("aten.addmm.default")]
    assert addmm.split()[-1] == "1", "operators are counted"
    kernels = text[text.index("fused kernels of") :]
    assert "custom__torch_max_backend.biased_linear" in kernels


def test_without_flags_the_process_is_silent(start, cold):
    child = start("run.py", "no-compile")
    assert child.stderr == ""
    assert child.stdout.count("\n") == 1, "its own line"


def test_profile_prints_a_table_at_exit(warm):
    text = warm.stderr
    header = next(line for line in text.splitlines() if line.lstrip().startswith("graph"))
    for phase in ("trace s", "build s", "compile s", "bind ms", "run ms", "unbind ms", "total s"):
        assert phase in header
    (row,) = [line for line in text.splitlines() if line.startswith("inference0")]
    (total,) = [line for line in text.splitlines() if line.startswith("total")]
    trace_s, *_, total_s = row.split()[1:]
    assert 0 < float(trace_s) <= float(total_s)
    assert row.split()[-5] == "3", "three calls"
    assert total.split()[-1] == total_s


def test_profile_of_a_test_run(start, cold):
    """TORCH_MAX_BACKEND_PROFILE=1 pytest FILE."""
    child = start(
        *["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "test_user_model.py"],
        PROFILE="yes",
    )
    output = child.stdout + child.stderr
    assert "1 passed" in child.stdout
    assert "torch_max_backend profile" in output
    (row,) = [line for line in output.splitlines() if line.startswith("inference0")]
    assert row.split()[-5] == "1", "one call"


def test_the_trace_loads(warm):
    events = json.loads(warm.trace.read_text())["traceEvents"]
    names = [event["name"] for event in events]
    for phase, count in [("trace", 1), ("cache", 1), ("load", 1), ("bind", 3), ("run", 3)]:
        assert names.count(f"inference0 {phase}") == count
    assert "inference0 compile" not in names
    for event in events:
        assert event["ph"] == "X" and event["dur"] >= 0 and event["ts"] > 0
        assert {"pid", "tid", "cat"} <= set(event)
    runs = [event for event in events if event["cat"] == "run"]
    assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in zip(runs, runs[1:], strict=False))
    assert list(warm.trace.parent.iterdir()) == [warm.trace]


# --------------------------------------------------------------------------------- background


@pytest.fixture(scope="module")
def background(start, cold):
    return start("background.py").result


def test_background_answers_with_eager_meanwhile(background):
    assert background["eager before"]
    assert not any("switching" in line for line in background["waiting"])


ENDS = """
import torch
run = torch.compile(torch.tanh, backend="max", options={"compile": "background"})
print(run(torch.zeros(3)).tolist())
"""


def test_a_process_that_ends_under_a_background_compile(tmp_path):
    """It ends well, when the compile has; the next one has the executable."""
    env = {**os.environ, "TORCH_MAX_BACKEND_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "[0.0, 0.0, 0.0]\n"), done.stderr
    programs = [
        path for path in tmp_path.rglob("*") if path.is_file() and "kernels" not in path.parts
    ]
    assert any(path.stat().st_size > 10_000 for path in programs)


SWITCHES = (
    LOGGED
    + """
import time
import torch

def parts(x):
    x = torch.tanh(x)
    torch._dynamo.graph_break()
    return torch.cos(x)

run = torch.compile(parts, backend="max", options={"compile": "background"})
x = torch.randn(1000)
deadline = time.monotonic() + 300
eager = parts(x)
assert torch.equal(run(x), eager)
while sum("switching" in line for line in logged) < 2 and time.monotonic() < deadline:
    torch.testing.assert_close(run(x), eager)
    time.sleep(0.05)
torch.testing.assert_close(run(x), eager)
said = ["compiling in the background", "from the compile cache, not traced", "switching to MAX"]
assert [sum(text in line for line in logged) for text in said] == [2, 2, 2], logged
assert len(logged) == 6, logged
"""
)


def test_a_background_compile_in_a_process_of_its_own(tmp_path):
    """Both parts of the function are compiled as one program, and each is found there."""
    env = {**os.environ, "TORCH_MAX_BACKEND_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SWITCHES], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.glob("??/*.graph"))) == 2
    assert len(list(tmp_path.glob("??/*.max"))) == 1


def test_background_switches_once_and_says_so(background, cold):
    first = [line for line in background["logged"] if "answering with eager" in line]
    switched = [line for line in background["logged"] if "switching to MAX" in line]
    assert "inference0" in first[0]
    assert len(switched) == 1 and "inference0" in switched[0]
    assert 0 < background["error after"] + 1e-12 < 1e-5
    assert background["bytes"] == cold.result["bytes"], "MAX answered"


def test_an_error_in_the_background_surfaces_at_the_next_call(background):
    assert background["answered"], "the first call is eager's"
    assert background["kinds"] == ["CompileError", "CompileError"], "and at each after that"
    assert all("the compiler is broken today" in text for text in background["messages"])
    assert background["causes"][0] == "the compiler is broken today"
    assert any("inference1 failed" in line for line in background["logged"])


# ------------------------------------------------------------------------------------ imports


def test_torch_lists_the_backend_before_anything_is_imported(start):
    child = start(
        "-c",
        "import sys, torch\n"
        "assert 'torch_max_backend' not in sys.modules\n"
        "assert 'max' in torch._dynamo.list_backends(), torch._dynamo.list_backends()\n"
        "assert 'max.engine' not in sys.modules",
    )
    assert child.stderr == ""


def test_the_package_alone_imports_neither_torch_nor_max(start):
    start(
        "-c",
        "import sys, torch_max_backend\n"
        "assert torch_max_backend.__version__\n"
        "loaded = [name for name in ('torch', 'max', 'numpy') if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "torch_max_backend.MaxOptions, torch_max_backend.UnsupportedOpsError\n"
        "loaded = [name for name in ('torch', 'max') if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "assert set(torch_max_backend.__all__) <= set(dir(torch_max_backend))",
    )


def test_the_backend_is_imported_without_what_only_tracing_and_lowering_need(start):
    start(
        "-c",
        "import sys, torch_max_backend\n"
        "torch_max_backend.max_backend\n"
        "assert 'torch_max_backend.registry' not in sys.modules\n"
        "assert 'torch_max_backend.pipeline' not in sys.modules\n"
        "import torch_max_backend.pipeline\n"
        "assert 'torch_max_backend.tables' in sys.modules\n"
        "assert 'beartype' not in sys.modules",
    )
