"""Executables found by Dynamo's graph alone: when there is one, and that it answers as eager."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_max_backend import cache, pipeline
from torch_max_backend.compile_statistics import statistics
from torch_max_backend.executable import CompiledGraph

ROOT = Path(__file__).parents[1]
X = torch.randn(3, 5, 16)


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The calls that an empty cache of the test's own holds."""
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield lambda: list(tmp_path.glob("??/*.call"))
    torch._dynamo.reset()


class Ran(Exception):
    pass


@pytest.fixture
def never_run(monkeypatch):
    """Graphs are traced and lowered, and not compiled."""

    def call(self, args):
        raise Ran

    monkeypatch.setattr(CompiledGraph, "__call__", call)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.linear = nn.Linear(16, 16)

    @torch.compiler.nested_compile_region
    def forward(self, x):
        return x + self.linear(self.norm(x)).relu()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.register_buffer("scale", torch.rand(16))

    def forward(self, x):
        x = self.blocks(x) * self.scale
        mean = x.mean(1)
        return mean, x.argmax(-1), x.permute(2, 0, 1), mean


def compiled(model, **settings):
    torch._dynamo.reset()
    return torch.compile(model, backend="max", fullgraph=True, dynamic=False, **settings)


def check(model, run):
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        for result, eager in zip(run(x), model(x), strict=True):
            torch.testing.assert_close(result, eager)
            assert result.stride() == eager.stride()


ANOTHER_PROCESS = """
from tests.test_warm_start import Model, check, compiled, pipeline

pipeline.compile_program = None
model = Model().eval()
check(model, compiled(model))
"""


def test_a_graph_that_was_compiled_is_called_without_a_trace(calls, monkeypatch, caplog):
    model = Model().eval()
    check(model, compiled(model))
    assert len(calls()) == 1
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    trace = pipeline.compile_program

    def refuse(*args, **kwargs):
        raise AssertionError("it was traced")

    monkeypatch.setattr(pipeline, "compile_program", refuse)
    before = statistics.cached
    run = compiled(model)
    with caplog.at_level(logging.INFO, "torch_max_backend"):
        check(model, run)
    assert "from the compile cache, not traced" in caplog.text
    assert statistics.cached == before + 1

    with torch.no_grad():
        model.blocks[0].linear.weight.mul_(2)
    model.scale.data = torch.rand(16)
    check(model, run)
    check(other := Model().eval(), compiled(other))
    check(model, compiled(model, options={"compile": "background"}))
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="it was traced"):
        check(model, compiled(model, options={"cache": False}))
    with monkeypatch.context() as verbose:
        verbose.setenv("TORCH_MAX_BACKEND_VERBOSE", "1")
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="it was traced"):
            check(model, compiled(model))

    monkeypatch.setattr(pipeline, "compile_program", trace)
    (path,) = calls()
    key = path.stem
    call = cache.load_call(key)
    for broken in ({"inputs": call["inputs"][1:]}, {"outputs": [{"kind": "tensor"}]}):
        cache.store_call(key, {**call, **broken})
        with caplog.at_level(logging.WARNING, "torch_max_backend"):
            check(model, compiled(model))
        assert "cannot load the cached executable" in caplog.text
        caplog.clear()
        assert cache.load_call(key) == call, "written anew"
    path.write_bytes(path.read_bytes()[:-40])
    check(model, compiled(model))
    assert cache.load_call(key) == call


def test_an_executable_that_is_gone_is_compiled_anew(calls, never_run, monkeypatch):
    traced = []
    trace = pipeline.compile_program
    monkeypatch.setattr(
        pipeline, "compile_program", lambda *a, **k: traced.append(1) or trace(*a, **k)
    )
    for count in (1, 2):
        with pytest.raises(Ran), torch.no_grad():
            compiled(lambda x: x * 2)(X)
        assert len(traced) == count and len(calls()) == 1


def add_in_place(x):
    x.add_(1)
    return x * 2


INELIGIBLE = {
    "a changed input": (add_in_place, {}),
    "a view of an input": (lambda x: (x * 2, x.view(-1)), {}),
    "a size among the results": (lambda x: (x * 2, x.shape[0] + x.shape[1]), {"dynamic": True}),
    "symbolic sizes": (lambda x: x * 2, {"dynamic": True}),
    "sizes that only a run tells": (lambda x: x.nonzero(), {}),
    "no cache": (lambda x: x * 2, {"options": {"cache": False}}),
}


@pytest.mark.parametrize("name", INELIGIBLE)
def test_what_needs_more_than_a_call_is_not_kept(name, calls, never_run):
    function, settings = INELIGIBLE[name]
    run = torch.compile(function, backend="max", fullgraph=True, **{"dynamic": False, **settings})
    found_by_a_run = torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
    with pytest.raises(Ran), torch.no_grad(), found_by_a_run:
        run(X.clone())
    assert calls() == []


def test_training_is_not_kept(calls, never_run):
    with pytest.raises(Ran):
        compiled(nn.Linear(16, 4))(X)
    assert calls() == []
