"""Exported models: one package of a small model, made once, loaded in many ways."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
import time
import weakref
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from max import driver
from torch import nn
from torch.export import Dim

from torch_max_backend import (
    ExportError,
    InferenceResult,
    MaxCompiledModel,
    export,
    load,
    load_metadata_from_package,
)
from torch_max_backend.aot import exporting, loaded, package
from torch_max_backend.bound_weights import BoundWeights
from torch_max_backend.cli.main import cli
from torch_max_backend.cpu import cpu_levels
from torch_max_backend.errors import (
    ConstantsError,
    DamagedPackageError,
    NotAPackageError,
    PackageCpuError,
    PackageDeviceError,
    PackageError,
    PackageInputError,
    PackageNotFoundError,
    PackageVersionError,
)


class Model(nn.Module):
    """Weights of which two are one and two unused, a buffer that counts, results of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 3)  # not called
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("offset", torch.arange(8.0), persistent=False)

    def forward(self, x: torch.Tensor, extra: dict[str, Any]) -> dict[str, Any]:
        self.calls.add_(1)
        y = self.second(torch.relu(self.first(x))) + self.offset * extra["scale"]
        return {"y": y, "rows": x.shape[0], "none": None, "mask": y > extra["limit"]}


EXTRA = {"scale": 2.0, "limit": torch.tensor(0.5)}
SHAPES = {"x": {0: Dim("batch", min=1, max=16)}, "extra": {"scale": None, "limit": None}}


def example(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 8)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def made(model: Model, tmp_path_factory: pytest.TempPathFactory) -> exporting.Export:
    path = tmp_path_factory.mktemp("exported") / "model.max"
    return export(model, (example(), EXTRA), path=path, dynamic_shapes=SHAPES, verify=True)


@pytest.fixture
def path(made: exporting.Export, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copy(made.path, tmp_path / "model.max"))


@pytest.fixture(scope="module")
def package_model(made: exporting.Export) -> MaxCompiledModel:
    return load(made.path)


@pytest.fixture(scope="module")
def frozen(model: Model, tmp_path_factory: pytest.TempPathFactory) -> exporting.Export:
    path = tmp_path_factory.mktemp("frozen") / "model.max"
    arguments = (example(), EXTRA)
    return export(model, arguments, path=path, dynamic_shapes=SHAPES, freeze=True, verify=True)


def eager(model: Model, x: torch.Tensor) -> dict[str, Any]:
    with torch.no_grad():
        return model(x, EXTRA)


def test_what_export_says(made: exporting.Export):
    assert made.tracing == "dynamic" and made.weights is None
    assert made.verified is not None
    (first, *_) = made.verified
    assert first["shape"] == [4, 8] and first["largest_error"] < 1e-5
    assert first["min"] < first["mean"] < first["max"]


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_pytrees_in_and_out(model: Model, package_model: MaxCompiledModel, batch: int):
    x = example(batch)
    found, expected = package_model(x, EXTRA), eager(model, x)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found["y"], expected["y"])
    assert torch.equal(found["mask"], expected["mask"])
    assert found["rows"] == batch and found["none"] is None


def test_flat_lists(model: Model, package_model: MaxCompiledModel):
    x = example()
    results = package_model.run([x, 2.0, EXTRA["limit"]])
    torch.testing.assert_close(results[0], eager(model, x)["y"])
    inputs = [example(), 2.0, EXTRA["limit"]]
    watched = weakref.ref(inputs[0])
    package_model.boxed_run(inputs)
    assert inputs == [] and watched() is None


def test_a_buffer_that_the_model_changes(path: Path):
    fresh = load(path)
    assert "calls" in fresh.get_constant_fqns()
    for _ in range(3):
        fresh(example(), EXTRA)
    assert fresh._held.constants["calls"].item() == load(path)._held.constants["calls"].item() + 3


def test_timed(package_model: MaxCompiledModel):
    result = package_model.infer(example(), EXTRA)
    assert isinstance(result, InferenceResult)
    assert 0 < result.latency_ms < 10_000 and result.memory_bytes > 1 << 20
    assert result.outputs["rows"] == 4


def test_what_it_says_of_itself(made: exporting.Export, package_model: MaxCompiledModel):
    metadata = load_metadata_from_package(made.path)
    assert metadata["model"] == "Model" and metadata["device"] == "cpu"
    assert metadata["versions"]["torch"] == torch.__version__
    assert (metadata["inputs"][0]["shape"], metadata["ranges"]) == (
        ["batch", 8],
        {"batch": [1, 16]},
    )
    assert {e["name"]: e["shape"] for e in metadata["constants"]}["first.weight"] == [8, 8]
    assert metadata["aliases"] == {"second.weight": "first.weight"}
    assert metadata["unused"] == ["head.weight", "head.bias"]
    strings = package_model.get_metadata()
    assert strings["model"] == "Model" and json.loads(strings["versions"]) == metadata["versions"]
    assert all("dict" in tree for tree in package_model.get_call_spec())
    assert {"first.weight", "calls", "offset"} <= set(package_model.get_constant_fqns())
    x, limit = package_model.input_specs
    assert x.dtype == torch.float32 and x.shape[1] == 8 and isinstance(x.shape[0], str)
    assert limit.shape == ()
    assert [spec.dtype for spec in package_model.output_specs] == [torch.float32, torch.bool]
    assert package_model.device == torch.device("cpu")


WRONG_CALLS = {
    "number": ([example()], "takes 3 inputs, 1 were given"),
    "kind": ([1, 2.0, EXTRA["limit"]], "input 0 .* int was given"),
    "dtype": ([example().double(), 2.0, EXTRA["limit"]], r"float32 .*tensor of torch\.float64"),
    "rank": ([example()[0], 2.0, EXTRA["limit"]], r"shape \[8\] was given"),
    "size": ([torch.randn(4, 9), 2.0, EXTRA["limit"]], "axis 1 has 9 elements, 8 are needed"),
    "range": (
        [example(17), 2.0, EXTRA["limit"]],
        r"x: float32 \[batch, 8\]; axis 0 has 17 elements, not 1 to 16",
    ),
    "fixed": ([example(), 3.0, EXTRA["limit"]], r"exported as 2\.0, 3\.0 was given"),
}


@pytest.mark.parametrize("batch", [1, 8, 16])  # fewer than 6 rows would be dot products
def test_frozen_weights(model: Model, frozen: exporting.Export, batch: int):
    package, x = load(frozen.path), example(batch)
    torch.testing.assert_close(package(x, EXTRA)["y"], eager(model, x)["y"])
    metadata = load_metadata_from_package(frozen.path)
    assert metadata["frozen"] == ["first.weight", "offset"]
    assert metadata["unused"] == ["head.weight", "head.bias"]
    names = [name for name in package.get_constant_fqns() if not name.startswith("frozen.")]
    assert sorted(names) == ["calls", "first.bias", "second.bias"]
    assert len(names) < len(package.get_constant_fqns())


def test_a_buffer_that_a_frozen_model_changes(frozen: exporting.Export):
    package = load(frozen.path)
    before = package._held.constants["calls"].item()
    package(example(), EXTRA)
    assert package._held.constants["calls"].item() == before + 1


def test_frozen_weights_stay(model: Model, frozen: exporting.Export):
    with pytest.raises(ConstantsError, match=r"freeze=True.*export it again"):
        load(frozen.path).load_constants(model.state_dict())


class Frozen(nn.Module):
    """A weight that is called as what is computed would be."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.frozen = nn.ParameterList([torch.randn(8)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.frozen[0]


def test_names_of_frozen_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(exporting, "compile_ahead", lambda gm, _: b"")
    made = export(Frozen().eval(), (torch.randn(8, 8),), path=tmp_path / "a.max", freeze=True)
    entries = load_metadata_from_package(made.path)["constants"]
    assert {e["name"] for e in entries} == {"frozen.0", "layer.bias", "frozen_.0"}


def test_info_says_that_it_is_frozen(frozen: exporting.Export):
    shown = CliRunner().invoke(cli, ["info", str(frozen.path)])
    assert "in the package, frozen\n" in shown.output


@pytest.mark.parametrize("what", WRONG_CALLS)
def test_wrong_calls(package_model: MaxCompiledModel, what: str):
    inputs, message = WRONG_CALLS[what]
    with pytest.raises(PackageInputError, match=message):
        package_model.run(inputs)


def test_wrong_pytree(package_model: MaxCompiledModel):
    with pytest.raises(PackageInputError, match="of the form"):
        package_model(example())


def test_new_weights(path: Path):
    fresh, other = load(path), Model().eval()
    x = example()
    fresh(x, EXTRA)  # the old ones are bound now
    state = other.state_dict()
    state["first.weight"] = state["first.weight"].T.contiguous().T
    fresh.load_constants(state)
    expected = eager(other, x)["y"]
    torch.testing.assert_close(fresh(x, EXTRA)["y"], expected)
    with torch.no_grad():
        other.first.weight.zero_()  # they were copied
    torch.testing.assert_close(fresh(x, EXTRA)["y"], expected)


def test_weights_that_do_not_fit(package_model: MaxCompiledModel):
    mapping = {"first.weight": torch.zeros(8, 9), "frist.bias": torch.zeros(8)}
    with pytest.raises(ConstantsError) as caught:
        package_model.load_constants(mapping)
    text = str(caught.value)
    assert "unknown: frist.bias" in text and "missing: first.bias" in text
    assert "torch.float32 [8, 8] is needed, torch.float32 [8, 9] was given" in text
    with pytest.raises(ConstantsError, match="unknown"):
        package_model.load_constants({"x": torch.zeros(1)}, check_full_update=False)


def test_a_call_does_not_look_at_the_weights(path: Path, monkeypatch: pytest.MonkeyPatch):
    """They stay where they are in memory; to look at 150 of them out of cache takes time."""
    package_model, x = load(path), example()
    expected = package_model(x, EXTRA)["y"]
    monkeypatch.setattr(BoundWeights, "__init__", None)
    monkeypatch.setattr(BoundWeights, "are_valid_for", None)
    torch.testing.assert_close(package_model(x, EXTRA)["y"], expected)


@pytest.mark.parametrize("settings", [{"num_runners": 1}, {"num_runners": 4}])
def test_threads(model: Model, path: Path, settings: dict[str, Any]):
    shared = load(path, **settings)
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = torch.randn(1 + seed, 8, generator=torch.Generator().manual_seed(seed))
        expected = model.second(torch.relu(model.first(x))) + model.offset * 2.0
        for _ in range(50):
            if not torch.allclose(shared(x, EXTRA)["y"], expected, atol=1e-5):
                wrong.append(seed)

    with torch.no_grad():
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_callers_wait_for_a_runner(path: Path, monkeypatch: pytest.MonkeyPatch):
    shared = load(path, num_runners=2)
    active, most, lock = 0, 0, threading.Lock()
    graph = shared._graph

    def slow(*arguments: Any) -> list[Any]:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        time.sleep(0.05)
        with lock:
            active -= 1
        return graph(*arguments)

    monkeypatch.setattr(shared, "_graph", slow)
    threads = [threading.Thread(target=shared, args=(example(), EXTRA)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
    with pytest.raises(ValueError, match="at least 1"):
        load(path, num_runners=0)


def rewritten(path: Path, member: str, change: Any) -> Path:
    """The package with one JSON member changed and its checksums right."""
    opened = package.Package(path)
    members: dict[str, Any] = {
        name: bytes(opened.member(name))
        for name in (package.METADATA, package.CALL_SPEC, package.EXECUTABLE, package.WEIGHTS)
    }
    content = json.loads(members[member])
    change(content)
    members[member] = package.to_text(content)
    package.write(path, "model", members)
    return path


def test_another_max(path: Path):
    rewritten(path, "metadata.json", lambda m: m["versions"].update(max="25.1"))
    with pytest.raises(PackageVersionError, match=r"made with MAX 25\.1, here is .*install max=="):
        load(path)


def test_another_processor(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loaded, "cpu_features", lambda: "sse2")
    with pytest.raises(PackageCpuError, match=r"avx.*which this one lacks"):
        load(path)


def test_another_system(path: Path):
    rewritten(path, "metadata.json", lambda m: m.update(system="Plan9 mips"))
    with pytest.raises(PackageCpuError, match="was made for Plan9 mips, this is"):
        load(path)


def test_another_device(path: Path):
    with pytest.raises(PackageDeviceError, match="made for 'cpu', not for 'cuda'"):
        load(path, device="cuda")
    rewritten(path, "metadata.json", lambda m: m.update(device="cuda"))
    if not torch.accelerator.is_available():
        with pytest.raises(PackageDeviceError, match="needs a cuda device"):
            load(path)


CONTRADICTIONS = {
    "an input too few": ("call_spec.json", lambda c: c["inputs"].pop()),
    "an output too many": ("call_spec.json", lambda c: c["outputs"].append(c["outputs"][0])),
    "an unknown kind": ("call_spec.json", lambda c: c["outputs"][0].update(kind="code")),
    "no trees": ("call_spec.json", lambda c: c.pop("in_tree")),
    "no inputs": ("metadata.json", lambda m: m.pop("inputs")),
    "other inputs": ("metadata.json", lambda m: m["inputs"].pop()),
    "another shape": ("metadata.json", lambda m: m["constants"][0].update(shape=[3])),
    "another dtype": ("metadata.json", lambda m: m["constants"][0].update(dtype="float99")),
    "another name": ("metadata.json", lambda m: m["constants"][0].update(name="x")),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_package_that_contradicts_itself(path: Path, what: str):
    rewritten(path, *CONTRADICTIONS[what])
    with pytest.raises(DamagedPackageError, match=r"contradicts itself"):
        load(path)


def test_an_executable_cut_short(path: Path):
    """MAX never sees it."""
    data = bytearray(path.read_bytes())
    offset, size = package.Package(path)._members["model/executable.max"]
    data[offset + size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedPackageError, match="checksum of model/executable.max"):
        load(path)


def test_no_such_package(path: Path):
    with pytest.raises(PackageNotFoundError):
        load(path.with_name("other.max"))
    with pytest.raises(NotAPackageError, match="no other/metadata.json"):
        load(path, model_name="other")
    assert issubclass(PackageNotFoundError, PackageError)


def test_weights_beside(model: Model, tmp_path: Path):
    """They follow the package; without them, or with others, it is not loaded."""
    path = tmp_path / "model.max"
    made = export(model, (example(), EXTRA), path=path, dynamic_shapes=SHAPES, weights="beside")
    assert made.weights is not None and made.weights.name.endswith(".safetensors")
    assert made.weights.stat().st_mode == path.stat().st_mode, "another user may read both"
    assert set(tmp_path.iterdir()) == {path, made.weights}
    with zipfile.ZipFile(path) as archive:
        assert not any("weights" in name for name in archive.namelist())
    x = example()
    torch.testing.assert_close(load(path)(x, EXTRA)["y"], eager(model, x)["y"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = Path(shutil.move(made.weights, elsewhere))
    with pytest.raises(PackageNotFoundError, match="put that file beside the package"):
        load(path)
    data = bytearray(moved.read_bytes())
    data[-1] ^= 1
    made.weights.write_bytes(data)
    with pytest.raises(DamagedPackageError, match="the checksum differs"):
        load(path)


def full_disk(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_export_in_the_place_of_another(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Until the new package stands, the old one and its weights do."""
    path = tmp_path / "model.max"
    settings: dict[str, Any] = {"dynamic_shapes": SHAPES, "weights": "beside"}
    first = export(model, (example(), EXTRA), path=path, **settings)
    other = Model().eval()
    with monkeypatch.context() as patch:
        patch.setattr(package.os, "fsync", full_disk)
        with pytest.raises(ExportError, match="nothing was changed"):
            export(other, (example(), EXTRA), path=path, **settings)
    assert set(tmp_path.iterdir()) == {path, first.weights}
    x = example()
    torch.testing.assert_close(load(path)(x, EXTRA)["y"], eager(model, x)["y"])
    second = export(other, (example(), EXTRA), path=path, **settings)
    assert set(tmp_path.iterdir()) == {path, second.weights} and first.weights != second.weights
    torch.testing.assert_close(load(path)(x, EXTRA)["y"], eager(other, x)["y"])


def test_the_weights_are_mapped(path: Path):
    """Written to, they are copied: the file stays as it is."""
    before = path.read_bytes()
    fresh = load(path)
    fresh._held.constants["first.weight"].fill_(7.0)
    assert path.read_bytes() == before


FRESH = """
import sys
from torch_max_backend import load
import torch
model = load(sys.argv[1])
x, expected = torch.load(sys.argv[2])
found = model(x, {"scale": 2.0, "limit": torch.tensor(0.5)})["y"]
compiler = "torch._dynamo", "max.nn", "sympy", "torch_max_backend.compilation"
print([name for name in compiler if name in sys.modules])
torch.testing.assert_close(found, expected)
"""


def test_a_fresh_process_from_a_folder_that_cannot_be_written(
    model: Model, path: Path, tmp_path: Path
):
    x = example()
    data = tmp_path / "data.pt"
    torch.save((x, eager(model, x)["y"]), data)
    folder = tmp_path / "read only"
    folder.mkdir()
    moved = shutil.move(path, folder)
    folder.chmod(0o555)
    try:
        run = subprocess.run(
            [sys.executable, "-c", FRESH, moved, data], capture_output=True, text=True, cwd="/"
        )
    finally:
        folder.chmod(0o755)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


# ------------------------------------------------------------------- what cannot be exported


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def test_a_model_that_cannot_be_traced(tmp_path: Path):
    path = tmp_path / "a.max"
    with pytest.raises(ExportError, match=r"cannot trace the model; fallback=True tries") as caught:
        export(Branching().eval(), (example(),), path=path)
    assert caught.value.__cause__ is not None
    with pytest.raises(ExportError, match=r"static: (.|\n)*strict=False: "):
        export(Branching().eval(), (example(),), path=path, fallback=True)
    assert list(tmp_path.iterdir()) == []


def test_fallback_says_what_served(monkeypatch: pytest.MonkeyPatch):
    """Dynamic sizes that the model does not allow."""

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(4, 8) * 2

    program, tracing = exporting._traced(
        Fixed().eval(), (example(),), {}, {"x": {0: Dim("batch")}}, True
    )
    assert tracing == "static" and not program.range_constraints


def test_what_export_refuses(model: Model, tmp_path: Path):
    arguments = (example(), EXTRA)
    with pytest.raises(ExportError, match=r"training mode.*model\.eval\(\)"):
        export(Model().train(), arguments, path=tmp_path / "a.max")
    with pytest.raises(ExportError, match="there is no folder"):
        export(model, arguments, path=tmp_path / "missing" / "a.max")
    with pytest.raises(ExportError, match=r"freeze=True .* leave it out for gpu='sm_90'"):
        export(model, arguments, path=tmp_path / "a.max", gpu="sm_90", freeze=True)
    with pytest.raises(ExportError, match="'embedded' or 'beside'"):
        export(model, arguments, path=tmp_path / "a.max", weights="none")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_exported_program(made: exporting.Export, model: Model, tmp_path: Path):
    """What torch.export saved, for a processor that is older than most."""
    program = torch.export.export(model, (example(), EXTRA), dynamic_shapes=SHAPES)
    torch.export.save(program, tmp_path / "program.pt2")
    again = torch.export.load(tmp_path / "program.pt2")
    cpu = list(cpu_levels())[-2:][0]  # x86-64-v3; generic on ARM
    exported = export(again, path=tmp_path / "a.max", cpu=cpu)
    x = example(3)
    torch.testing.assert_close(load(exported.path)(x, EXTRA)["y"], eager(model, x)["y"])
    metadata, native = (load_metadata_from_package(p) for p in (exported.path, made.path))
    assert (metadata["cpu"], native["cpu"]) == (cpu, "native")
    assert set(metadata["instruction_sets"]) == cpu_levels()[cpu]
    assert driver.get_virtual_cpu_target() == "", "the next compile is for this machine again"
