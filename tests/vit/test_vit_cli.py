"""``vit``: good and bad input; each command as a process once, which takes seconds to start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from vit import HeadConfig, ViTConfig
from vit.cli import measuring
from vit.cli.main import cli
from vit.flops import product_flops
from vit.images import read_image

CONFIG = ViTConfig(3, [8, 8], [32, 24], 2, 32, 48, 2, dtype=torch.float32, num_cls_tokens=1)


def run(*arguments: object) -> SimpleNamespace:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="vit")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return SimpleNamespace(returncode=done.exit_code, stdout=done.stdout, stderr=done.stderr)


def run_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vit.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_processes(files: Path):
    """Data on stdout, the rest on stderr, and the exit code."""
    config = files / "vit.yaml"
    package = files / "vit.max"
    for arguments in (
        ["validate", config],
        ["summarize", config],
        ["infer", "--model", package, "--iterations", 1],
        ["export", "--config", config, "--output", files / "again.max"],
    ):
        done = run_process(*arguments, "--format", "json")
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
    for arguments, code in (
        (["validate", files / "none.yaml"], 1),
        (["summarize", files / "none.yaml"], 1),
        (["infer", "--model", files / "none.max"], 1),
        (["export", "--config", config], 2),
    ):
        done = run_process(*arguments)
        assert done.returncode == code and "Traceback" not in done.stderr


def result(*arguments: object) -> dict:
    done = run(*arguments, "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fault(*arguments: object) -> str:
    """The last line on stderr of a command that fails."""
    done = run(*arguments)
    assert done.returncode in (1, 2) and done.stdout == ""
    return done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, weights and the package made of them."""
    folder = tmp_path_factory.mktemp("vit")
    (folder / "vit.yaml").write_text(CONFIG.to_yaml())
    torch.manual_seed(1)
    save_file(CONFIG.instantiate().state_dict(), folder / "vit.safetensors")
    exported = result(
        "export",
        *("--config", folder / "vit.yaml"),
        *("--weights", folder / "vit.safetensors"),
        *("--output", folder / "vit.max"),
        "--verify",
    )
    assert exported["tracing"] == "dynamic"
    assert exported["verified"][0]["largest_error"] < 1e-4
    return folder


@pytest.mark.parametrize("command", ["validate", "summarize", "export", "infer"])
def test_help_has_an_example(command: str):
    done = run(command, "--help")
    assert done.returncode == 0 and f"Example: vit {command}" in done.stdout


def test_validate(tmp_path: Path):
    path = tmp_path / "vit.yaml"
    path.write_text(CONFIG.to_yaml())
    assert run("validate", path).stdout == f"{path} is valid\n"
    assert result("validate", path) == {
        "valid": True,
        "config_path": str(path),
        "depth": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hidden_size: 32", "hidden_size: 33", "hidden_size (33) must be divisible"),
        ("[32, 24]", "[32, 25]", "img_size 25 of axis 1 is not divisible by patch_size 8"),
        ("depth: 2", "depth: 0", "depth must be positive, got 0"),
        ("depth: 2", "deep: 2", "deep"),
        ("depth: 2", "depth: [", "expected"),
        ("dtype: float32", "dtype: float33", "Unknown dtype: float33"),
    ],
)
def test_validate_names_the_failed_rule(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "vit.yaml"
    text = CONFIG.to_yaml()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    done = run("validate", path, "--format", "json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["valid"]
    (error,) = found["errors"]
    assert message in error


def test_summarize(tmp_path: Path):
    """Equal to the model to the last parameter."""
    config = ViTConfig(
        **{
            **{name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__},
            "num_register_tokens": 2,
            "pos_enc": "fourier",
            "patch_embed_normalization": True,
            "heads": {"class": HeadConfig(out_features=5)},
        }
    )
    path = tmp_path / "vit.yaml"
    path.write_text(config.to_yaml())
    found = result("summarize", path)
    model = config.instantiate()
    counts = found["parameters"]
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    parts = ("patch_embed", "transformer", "final_norm", "tokens", "pos_encoding", "heads")
    assert sum(counts[part] for part in parts) == counts["total"]
    assert all(counts[part] for part in parts)
    assert counts["per_layer"] == sum(p.numel() for p in model.blocks[0].parameters())
    assert found["sequence"] == {"num_patches": 12, "seq_length": 15}
    assert found["memory"]["params_bytes"] == 4 * counts["total"]
    assert found["architecture"]["head_dim"] == 16
    assert found["flops"] > 2 * 12 * 192 * 32
    assert f"{counts['total']:,}" in run("summarize", path).stdout
    assert "File not found" in fault("summarize", tmp_path / "none.yaml")


def test_infer_random(files: Path):
    found = result("infer", "--model", files / "vit.max", "--shape", "5,3,32,24", "--device", "CPU")
    assert found["input_shape"] == [5, 3, 32, 24] and found["output_shape"] == [5, 13, 32]
    times = found["latency_ms"]
    assert 0 < times["min"] <= times["p50"] <= times["p95"] <= times["max"]
    assert found["images_per_second"] == pytest.approx(5e3 / times["mean"])
    assert found["peak_memory_bytes"] > 1 << 24


def test_infer_images(files: Path, tmp_path: Path):
    """What the model itself gives for the images."""
    rows = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    Image.fromarray(rows).save(tmp_path / "a.png")
    Image.new("L", (100, 60), 77).save(tmp_path / "b.jpg")
    images = ["--image", tmp_path / "a.png", "--image", tmp_path / "b.jpg"]
    scale = ["--mean", 0.5, 0.5, 0.5, "--std", 0.25, 0.25, 0.25]
    for name in ("features.safetensors", "features.npz"):
        output = tmp_path / name
        result("infer", "--model", files / "vit.max", *images, *scale, "--output", output)
    features = load_file(tmp_path / "features.safetensors")["features"]
    assert features.shape == (2, 13, 32)
    assert np.array_equal(np.load(tmp_path / "features.npz")["features"], features)
    model = CONFIG.instantiate().eval()
    model.load_state_dict(load_file(files / "vit.safetensors"))
    x = (torch.tensor(rows).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    with torch.no_grad():
        torch.testing.assert_close(features[:1], model(x).dense_features, atol=1e-5, rtol=1e-4)


def test_classes_of_images(tmp_path: Path):
    config = replace(CONFIG, heads={"classes": HeadConfig(out_features=9)})
    (tmp_path / "vit.yaml").write_text(config.to_yaml())
    torch.manual_seed(0)
    model = config.instantiate().eval()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    Image.new("RGB", (24, 32), (200, 30, 90)).save(tmp_path / "a.png")
    files = ["--config", tmp_path / "vit.yaml", "--weights", tmp_path / "vit.safetensors"]
    package = tmp_path / "vit.max"
    assert "'tail', there are ['classes']" in fault(
        "export", *files, "--output", package, "--head", "tail"
    )
    result("export", *files, "--output", package, "--head", "classes")
    arguments = ("infer", "--model", package, "--image", tmp_path / "a.png", "--top-k", 2)
    found = result(*arguments)
    with torch.no_grad():
        tokens = model(read_image(tmp_path / "a.png", (32, 24))[None]).cls_tokens
        probabilities = model.get_head("classes")(tokens[:, 0]).softmax(1)
    values, classes = probabilities[0].topk(2)
    (entry,) = found["top"]
    assert entry["image"].endswith("a.png")
    assert [c["class"] for c in entry["classes"]] == classes.tolist()
    assert [c["probability"] for c in entry["classes"]] == pytest.approx(values.tolist(), abs=1e-5)
    assert re.search(rf"a\.png +{classes[0]} \(\d+\.\d%\), {classes[1]} ", run(*arguments).stdout)


def test_infer_faults(files: Path, tmp_path: Path):
    model = ("infer", "--model", files / "vit.max")
    text = tmp_path / "a.png"
    text.write_text("no image")
    missing = fault("infer", "--model", tmp_path / "none.max", "--config", "vit.yaml")
    assert missing.strip() == f"vit export --config vit.yaml --output {tmp_path / 'none.max'}"
    assert "cannot read the image" in fault(*model, "--image", text)
    assert "no list of sizes" in fault(*model, "--shape", "5x3")
    assert "axis 0 has 33 elements, not 1 to 32" in fault(*model, "--shape", "33,3,32,24")
    assert "exclude each other" in fault(*model, "--shape", "1,3,32,24", "--image", text)
    assert "is no device" in fault(*model, "--device", "gpu0")
    assert "float32" in fault(*model, "--dtype", "float16")
    assert "is not a package" in fault("infer", "--model", text)
    assert "neither .safetensors nor .npz" in fault(*model, "--output", tmp_path / "a.csv")
    assert "there is no folder" in fault(*model, "--output", tmp_path / "none" / "a.npz")


def test_export_faults(files: Path, tmp_path: Path):
    command = ("export", "--config", files / "vit.yaml", "--output", tmp_path / "a.max")
    assert "makes a model of (B, 3, 32, 24)" in fault(*command, "--shape", "1,3,32,32")
    assert "--weights" in fault(*command, "--weights", files / "vit.yaml")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "Missing key" in fault(*command, "--weights", tmp_path / "other.safetensors")
    assert not (tmp_path / "a.max").exists()


def benchmark_arguments(files: Path, *more: object) -> list[object]:
    counts = ["--warmup-iters", 1, "--latency-iters", 2, "--memory-iters", 1]
    return ["--configs", files / "vit.yaml", *counts, "--output-dir", files / "measured", *more]


def test_benchmark(files: Path):
    done = run_process(
        "benchmark",
        *benchmark_arguments(files, "--backends", "eager", "--backends", "none"),
        *["--batch-size", 3, "--plot-formats", "png", "--plot-formats", "svg", "--format", "json"],
    )
    assert done.returncode == 0, done.stderr
    assert "none: skipped" in done.stderr and "eager: " in done.stderr
    content = json.loads(done.stdout)
    (row,) = content["rows"]
    assert (row["config_name"], row["batch_size"], row["image_size"]) == ("vit", 3, "32x24")
    assert (row["pass_mode"], row["backend"]) == ("forward", "eager")
    assert row["latency_lower_ms"] <= row["latency_ms"] <= row["latency_upper_ms"]
    assert row["memory_mb"] > 50 and row["gflops"] > 0
    assert row["images_per_second"] == pytest.approx(3e3 / row["latency_ms"])
    (failure,) = content["failures"]
    assert failure["case"].endswith("none")
    names = ["results.json", "results.csv"]
    names += [
        f"{n}.{s}" for n in ("latency", "memory", "gflops", "throughput") for s in ("png", "svg")
    ]
    assert [Path(file).name for file in content["files"]] == names
    assert all(Path(file).stat().st_size for file in content["files"])
    assert json.loads((files / "measured/results.json").read_text()) == content["rows"]
    assert (files / "measured/results.csv").read_text().splitlines()[1].startswith("vit,3,32x24")


def test_benchmark_measures_without_the_compiler(monkeypatch):
    """Its memory stays in the process that compiled."""
    calls = []
    monkeypatch.setattr(measuring, "_apart", lambda function, case: calls.append(function.__name__))
    for backend in ("eager", "max"):
        measuring.measure_apart(
            measuring.BenchmarkCase(Path("vit.yaml"), 1, None, "forward", backend, "cpu", 1, 1, 1)
        )
    assert calls == ["measure", "_run_once", "measure"]


@pytest.mark.parametrize("mode", ["backward", "forward_backward"])
def test_benchmark_of_training(files: Path, monkeypatch, mode: str):
    monkeypatch.setattr("vit.cli.benchmark.measure_apart", measuring.measure)
    more = ["--pass-mode", mode, "--backends", "eager", "--no-plots", "--resolutions", 16]
    done = run("benchmark", *benchmark_arguments(files, *more))
    assert done.returncode == 0, done.stderr
    assert "16x16" in done.stdout and mode in done.stdout and "latency.svg" not in done.stdout


def test_benchmark_where_nothing_runs(files: Path, monkeypatch):
    def fail(case):
        raise BrokenProcessPool if case.backend == "max" else ValueError("one\ntwo")

    monkeypatch.setattr("vit.cli.benchmark.measure_apart", fail)
    more = ["--backends", "max", "--backends", "eager"]
    done = run("benchmark", *benchmark_arguments(files, *more))
    assert done.returncode == 1
    assert "max: the process died" in done.stdout and "eager: one\n" in done.stdout


def test_benchmark_says_first_that_there_will_be_no_plots(files: Path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("vit.cli.plots.find_spec", lambda name: None)
    monkeypatch.setattr("vit.cli.plots.progress", said.append)

    def fail(case):
        raise ValueError(f"said before: {said}")

    monkeypatch.setattr("vit.cli.benchmark.measure_apart", fail)
    assert "said before: []" in run("benchmark", *benchmark_arguments(files, "--no-plots")).stdout
    done = run("benchmark", *benchmark_arguments(files))
    assert "no plots: matplotlib is not installed (pip install matplotlib)" in done.stdout


def test_progress_on_a_terminal(files: Path):
    """A spinner that leaves nothing behind; elsewhere it is a line, see the other tests."""
    code = """
import sys
from rich.console import Console
from torch_max_backend.cli import output
output.Console = lambda stderr: Console(stderr=stderr, force_terminal=True, width=80)
with output.working("compiling"):
    print("data")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "data\n"
    assert "compiling" in done.stderr
    assert done.stderr.endswith("\x1b[2K"), "the line is cleared"


def test_shell_completion():
    env = {**os.environ, "_VIT_COMPLETE": "bash_source"}
    code = "from vit.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "_VIT_COMPLETE=bash_complete" in done.stdout


def test_rate_of_the_passes(files: Path, monkeypatch):
    monkeypatch.setattr(measuring, "_one_pass", lambda *_: 0.5)
    case = measuring.BenchmarkCase(files / "vit.yaml", 2, None, "forward", "eager", "cpu", 0, 2, 1)
    one, two, three = (
        measuring.measure(replace(case, pass_mode=mode))["gflops"] for mode in measuring.PASS_MODES
    )
    assert one == product_flops(CONFIG.instantiate(), torch.randn(2, 3, 32, 24)) / 0.5 / 1e9 > 0
    assert (two, three) == pytest.approx((2 * one, 3 * one))
