"""``max-backend``: good and bad input; as a process where another environment is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from torch_max_backend import export
from torch_max_backend.cli.main import cli


def run(*arguments: object) -> SimpleNamespace:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return SimpleNamespace(returncode=done.exit_code, stdout=done.stdout, stderr=done.stderr)


def run_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch_max_backend.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packages") / "model.max"
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    batch = torch.export.Dim("batch", min=2, max=8)
    export(model, (torch.randn(2, 4),), path=path, dynamic_shapes=({0: batch},))
    return path


@pytest.mark.parametrize("command", ["check", "info", "ops", "cache info", "cache clear"])
def test_help_has_an_example(command: str):
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert f"Example: max-backend {command}" in done.stdout


@pytest.mark.parametrize("arguments", [["chekc"], ["info"], ["ops", "--format", "xml"]])
def test_wrong_arguments(arguments: list[str]):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_info(package: Path):
    found = json.loads(run_process("info", package, "--format", "json").stdout)
    assert found["model"] == "Sequential"
    assert found["outputs"][0]["shape"] == ["batch", 3]
    text = run("info", package).stdout
    assert "input     input: float32 [batch, 4]\n" in text
    assert text.endswith("range     batch: 2 to 8\n")
    assert "Sequential" in text and "2 tensors, in the package" in text


def test_info_of_no_package(tmp_path: Path):
    file = tmp_path / "a.max"
    for prepare, message in (
        (lambda: None, "no package at"),
        (lambda: file.write_text("text"), "is not a package"),
    ):
        prepare()
        done = run("info", file)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert message in line
    assert run_process("info", file).returncode == 1


def test_ops():
    names = run("ops").stdout.splitlines()
    assert "aten.addmm.default" in names and names == sorted(names)
    assert json.loads(run("ops", "--format", "json").stdout)["operators"] == names


def test_cache(tmp_path: Path):
    folder = str(tmp_path / "cache")
    place = {"TORCH_MAX_BACKEND_CACHE_DIR": folder}
    found = json.loads(run_process("cache", "info", "--format", "json", **place).stdout)
    assert (found["folder"], found["programs"], found["bytes"]) == (folder, 0, 0)
    entry = tmp_path / "cache" / "ab" / "abcd.max"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"12345")
    assert "programs     1" in run_process("cache", "info", **place).stdout
    assert run_process("cache", "clear", **place).stdout == "1 programs removed\n"
    assert not entry.exists()


def test_check(package: Path):
    done = run_process("check", "--model", package, "--format", "json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ok"], done.stdout
    names = [entry["name"] for entry in found["checks"]]
    assert names[:5] == ["packages", "compile cache", "import MAX", "devices", "kernels"]
    assert "operations on cpu" in names and f"model {package}" in names
    assert "operations on cpu ..." in done.stderr


def test_check_where_nothing_works(tmp_path: Path):
    """The report is whole, with a remedy for each fault."""
    broken = tmp_path / "max"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('libmax.so: wrong ELF class')\n")
    file = tmp_path / "file"
    file.write_text("")
    done = run_process(
        "check", PYTHONPATH=str(tmp_path), TORCH_MAX_BACKEND_CACHE_DIR=str(file / "cache")
    )
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("FAILED compile cache") for line in lines)
    assert any("libmax.so: wrong ELF class" in line for line in lines)
    assert sum("what to do: " in line for line in lines) == 2
    assert lines[-1] == "something does not work, see above"
