"""``vit benchmark components``, run with eager PyTorch: no compile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from vit import ViTConfig
from vit.cli import component_times, components
from vit.cli.component_times import COMPONENTS, ComponentRun
from vit.cli.main import cli


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "vit.yaml"
    made = ViTConfig(3, [8, 8], [32, 24], 2, 32, 48, 2, dtype=torch.float32)
    path.write_text(made.to_yaml())
    return path


def run(tmp_path: Path, command: str, *arguments: object) -> SimpleNamespace:
    folder = ["--baseline-dir", str(tmp_path / "saved")]
    command_line = ["benchmark", "components", command, *map(str, arguments), *folder]
    done = CliRunner().invoke(cli, command_line, prog_name="vit")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return SimpleNamespace(code=done.exit_code, out=done.stdout, err=done.stderr)


def save(tmp_path: Path, name: str, **latency_ms: float) -> None:
    folder = tmp_path / "saved"
    folder.mkdir(exist_ok=True)
    case = {"config": "vit.yaml", "batch_size": 2, "device": "cpu", "backend": "max"}
    counts = {"components": list(latency_ms), "warmup_iters": 1, "latency_iters": 2}
    content = {"case": case | counts, "latency_ms": latency_ms}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_a_process(config: Path, tmp_path: Path):
    arguments = ["--config", config, "--backend", "eager", "--latency-iters", 2, "--save", "first"]
    done = subprocess.run(
        [sys.executable, "-m", "vit.cli.main", "benchmark", "components", "run"]
        + [*map(str, arguments), "--baseline-dir", str(tmp_path), "--format", "json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert tuple(found["latency_ms"]) == COMPONENTS
    assert all(value > 0 for value in found["latency_ms"].values())
    assert json.loads((tmp_path / "first.json").read_text()) == found


@pytest.mark.parametrize("name", COMPONENTS)
def test_parts_get_what_the_model_gives_them(config: Path, name: str):
    model = ViTConfig.from_yaml(config).instantiate().eval()
    call = component_times._calls(model, torch.randn(2, 3, 32, 24))[name]
    result = call.module(*call.args, **call.kwargs)
    shapes = {"rope": (2, 12, 16), "model": None}
    if name != "model":
        assert result.shape == shapes.get(name, (2, 12, 32))


def test_what_the_model_lacks_is_left_out(config: Path):
    config.write_text(re.sub("pos_enc: .*", "pos_enc: none", config.read_text()))
    case = ComponentRun(str(config), 1, "cpu", "eager", ("rope", "mlp"), 0, 1)
    assert list(component_times.measure_components(case)) == ["mlp"]


def test_verdicts(tmp_path: Path):
    save(tmp_path, "old", stem=1.0, mlp=1.0, block=1.0, model=1.0, rope=1.0)
    save(tmp_path, "new", stem=1.009, mlp=1.04, block=1.05, model=0.9)
    done = run(tmp_path, "compare", "old", "--current", "new", "--format", "json")
    rows = {row["component"]: row["verdict"] for row in json.loads(done.out)["rows"]}
    assert rows == {"stem": "same", "mlp": "slower", "block": "regression", "model": "faster"}
    assert done.code == 0
    strict = ("compare", "old", "--current", "new", "--fail-on-regression")
    done = run(tmp_path, *strict)
    assert done.code == 1 and re.search(r"block +1\.000 +1\.050 +\+5\.0 % +regression", done.out)
    assert run(tmp_path, *strict, "--threshold", 6).code == 0
    assert "faster" not in run(tmp_path, *strict, "--noise-floor", 11).out


def test_compared_with_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, "old", mlp=1.0)
    asked: list[ComponentRun] = []

    def measured(case: ComponentRun) -> dict[str, Any]:
        asked.append(case)
        return {"latency_ms": {"mlp": 2.0}}

    monkeypatch.setattr(components, "_measured", measured)
    assert run(tmp_path, "compare", "old", "--fail-on-regression").code == 1
    assert asked == [ComponentRun("vit.yaml", 2, "cpu", "max", ("mlp",), 1, 2)]


def test_baselines(tmp_path: Path):
    assert "no baselines" in run(tmp_path, "list-baselines").out
    save(tmp_path, "old", mlp=1.0)
    save(tmp_path, "new", mlp=1.0)
    listed = json.loads(run(tmp_path, "list-baselines", "--format", "json").out)["baselines"]
    assert [entry["name"] for entry in listed] == ["new", "old"]


def test_faults(config: Path, tmp_path: Path):
    save(tmp_path, "old", mlp=1.0)
    (tmp_path / "saved/broken.json").write_text("{}")
    for arguments, message in {
        ("compare", "none"): r"no baseline 'none' in .* \(there: broken, old\)",
        ("compare", "broken"): "broken.json is no baseline",
        ("compare", "../old"): "is no name of a baseline",
        ("run", "--config", tmp_path / "none.yaml"): "none.yaml",
        ("run", "--config", config, "--backend", "none"): "none",
        ("run", "--config", config, "--components", "tail"): "'tail' is not one of",
    }.items():
        done = run(tmp_path, *arguments)
        assert done.code in (1, 2) and re.search(message, done.err.splitlines()[-1]), done.err
