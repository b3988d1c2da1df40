"""PyTorch's own way of saving compiled functions: aot_compile, save, load in another process."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_max_backend import compilation, compiler, precompiled

ROOT = Path(__file__).parents[2]

LOAD = """
import json, sys
import torch
from torch_max_backend.compile_statistics import statistics

torch.set_num_threads(int(sys.argv[1]))  # PyTorch's guards ask for the number it was compiled with
with open("function.pt", "rb") as file, torch.no_grad():
    function = torch.compiler.load_compiled_function(file)
module, inputs, expected = torch.load("example.pt", weights_only=False)
with torch.no_grad():
    errors = [
        (function(module, x) - y).abs().max().item() for x, y in zip(inputs, expected, strict=True)
    ]
try:
    function(module, torch.randn(3, 9))
except RuntimeError as error:
    refusal = str(error)
print("RESULT", json.dumps([errors, statistics.compiled, statistics.cached, refusal]))
"""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def aot_compile(module: nn.Module, x: torch.Tensor):
    torch._dynamo.reset()
    torch._dynamo.mark_dynamic(x, 0)
    return torch.compile(module, backend="max", fullgraph=True).forward.aot_compile(((x,), {}))


def test_a_saved_function_runs_in_another_process(tmp_path: Path) -> None:
    module, inputs = small(), [torch.randn(batch, 8) for batch in (4, 7, 2)]
    with torch.no_grad():
        expected = [module(x) for x in inputs]
        compiled = aot_compile(module, inputs[0].clone())
        torch.testing.assert_close(compiled(module, inputs[0]), expected[0])
    compiled.save_compiled_function(str(tmp_path / "function.pt"))
    torch.save((module, inputs, expected), tmp_path / "example.pt")
    flags = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "TORCH_MAX_BACKEND_CACHE_DIR": str(tmp_path / "empty"),
        "MODULAR_CACHE_DIR": str(tmp_path / "empty too"),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(torch.get_num_threads())],
        cwd=tmp_path,
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    errors, compiled_there, cached, refusal = json.loads(done.stdout.split("RESULT ")[1])
    assert max(errors) < 1e-5
    assert (compiled_there, cached) == (0, 0), "the executable comes from the file"
    assert "GuardManager check failed" in refusal


@pytest.fixture
def compiles(monkeypatch) -> list[str]:
    """Notes each compile of MAX's, of which none happens."""
    calls: list[str] = []

    def compile_ahead(gm, options):
        calls.append(gm)
        return f"executable {len(calls)}".encode()

    monkeypatch.setattr(compilation, "compile_ahead", compile_ahead)
    return calls


def saved_state(compiled) -> dict:
    function = compiled._artifacts.compiled_fn
    data = precompiled.PrecompiledFunction.serialize_compile_artifacts(function)
    return pickle.loads(data)


@pytest.mark.parametrize("grad", [False, True])
def test_loading_finds_every_executable(compiles, grad: bool) -> None:
    """The backward's too; a graph traced from what was saved has the fingerprint it had."""
    with torch.set_grad_enabled(grad):
        state = saved_state(aot_compile(small(), torch.randn(4, 8)))
    assert len(state["executables"]) == len(compiles) == 1 + grad
    precompiled.PrecompiledFunction.deserialize_compile_artifacts(pickle.dumps(state))
    assert len(compiles) == 1 + grad


def test_what_another_release_saved_is_compiled_anew(compiles) -> None:
    with torch.no_grad():
        state = saved_state(aot_compile(small(), torch.randn(4, 8)))
    state["executables"] = {"of another release": b""}
    precompiled.PrecompiledFunction.deserialize_compile_artifacts(pickle.dumps(state))
    assert len(compiles) == 2


def test_regions_and_weights(compiles) -> None:
    """A ViT: nested regions in the graph, weights known as such when it is traced again."""
    from vit import ViTConfig

    config = ViTConfig(3, (8, 8), (16, 16), 2, 32, 64, 2, dtype=torch.float32)
    model, graphs = config.instantiate().eval(), []
    original = compilation.CompiledGraph

    class Recorded(original):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            graphs.append(self)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(compilation, "CompiledGraph", Recorded)
        state = saved_state(aot_compile(model, torch.randn(2, 3, 16, 16)))
        precompiled.PrecompiledFunction.deserialize_compile_artifacts(pickle.dumps(state))
    assert len(compiles) == 1
    first, again = graphs
    assert again._weights == first._weights and len(first._weights) > 20


def test_other_compiles_are_left_alone() -> None:
    """The sign by which aot_compile is known is not set otherwise."""
    assert not compiler._aot_compile_is_calling()
