"""The benchmarks' own arithmetic: summaries, comparisons, files, plots. Nothing is timed."""

import itertools
import json
import math
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import torch_max_backend
from benchmarks import (
    block_ops,
    by_turns,
    cases,
    compare,
    core_latency,
    environment,
    epilogues,
    memory,
    packages,
    passes,
    plots,
    register_rate,
    results,
    revisions,
    startup,
    vit_inference,
    waiting,
)
from benchmarks.cases import Case
from benchmarks.contestants import CONTESTANTS
from benchmarks.results import Row
from benchmarks.worker import WorkerError
from tests.tracing import trace
from torch_max_backend.passes import PASSES, fuse_linear_activation
from torch_max_backend.session import session
from torch_max_backend.time_slices import SLICE, max_workers, set_time_slice, time_slice


def row(contestant, times, *, batch=8, resolution=224, model="vit-s", **values):
    made = Row(model, batch, resolution, "float32", contestant, **values)
    made.summarize(times)
    return made


def test_summary():
    made = row("max", [5.0, 1.0, 2.0, 3.0, 4.0])
    assert (made.lower_quartile, made.median, made.upper_quartile) == (1.5, 3.0, 4.5)
    assert row("max", [2.0]).median == 2.0


def test_share_of_matmul():
    made = row("max", [2.0], flops=100, matmul_flops_per_second=200.0)
    assert made.share_of_matmul == 0.25
    assert row("max", [2.0], flops=100).share_of_matmul is None


def test_files_hold_what_was_measured(tmp_path):
    rows = [row("eager", [1.0, 2.0, 3.0]), Row("vit-s", 8, 224, "float32", "openvino", "absent")]
    results.write(tmp_path, {"cpu": "a"}, rows)
    assert results.read(tmp_path / "results.json") == ({"cpu": "a"}, rows)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("model,batch,resolution,dtype,contestant,left_out")
    assert not list(tmp_path.glob("*.new"))


def test_table():
    rows = [
        row("eager", [0.2], peak_memory=2**20 * 300, error=1e-6, rms_error=3e-7),
        row("max", [0.1], flops=10, matmul_flops_per_second=200.0),
        Row("vit-s", 8, 224, "float32", "openvino", "not installed"),
    ]
    shown = results.table(rows).splitlines()
    eager, ours, absent = (
        [cell.strip() for cell in line.split("  ") if cell] for line in shown[2:5]
    )
    assert "200.0" in eager and "2.00" in eager and "300" in eager and "25.0" in eager
    assert "1.0e-06" in eager and "3.0e-07" in eager
    assert "100.0" in ours and "1.00" in ours and "0.50" in ours
    assert absent[-1] == "left out"
    assert shown[-1] == "openvino: left out: not installed"


def test_ratios():
    rows = [
        row("eager", [0.3]),
        row("max", [0.1], flops=10, matmul_flops_per_second=200.0),
        Row("vit-s", 8, 224, "float32", "openvino", "not installed"),
    ]
    head, _, line = results.ratios(rows).splitlines()
    assert head.split()[-6:] == ["(ms)", "eager", "openvino", "share", "of", "matmul"]
    assert line.split() == ["vit-s", "float32", "8", "224", "100.0", "3.00", "0.50"]
    assert len(results.ratios(rows[:1]).splitlines()) == 2, "nothing of ours, no line"


def test_means_over_models():
    def case(model, ratio, *more):
        return [row("eager", [0.1 * ratio], model=model), row("max", [0.1], model=model), *more]

    inductor = row("inductor", [0.2], model="vit-s")
    rows = case("vit-ti", 2.0) + case("vit-s", 4.5, inductor) + [row("max", [0.1], batch=1)]
    *_, mean = results.ratios(rows).splitlines()
    assert mean.split() == ["geometric", "mean", "float32", "8", "224", "3.00"], (
        "of both models, without Inductor, which has one of them, and batch 1"
    )


def test_the_tables_of_a_file(tmp_path, capsys):
    rows = [row("eager", [0.3]), row("max", [0.1])]
    results.write(tmp_path, {}, rows)
    assert results.main([str(tmp_path / "results.json"), "--format", "github"]) == 0
    out = capsys.readouterr().out
    assert out == results.report(rows, "github") + "\n"
    assert results.ratios(rows, format="github") in out
    assert "multiple" not in results.report(rows[:1]), "nothing of ours, one table"


STEADY = [0.99, 1.0, 1.01]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([0.49, 0.5, 0.51], [0.49, 0.5, 0.51], ""),
        ([0.49, 0.5, 0.51], [0.59, 0.6, 0.61], "SLOWER"),
        ([0.49, 0.5, 0.51], [0.39, 0.4, 0.41], "faster"),
        ([0.49, 0.5, 0.51], [0.51, 0.52, 0.53], ""),  # below the threshold
        ([0.3, 0.5, 0.7], [0.5, 0.6, 0.7], ""),  # within the noise
    ],
)
def test_comparison(before, after, verdict):
    old, new = ([row("eager", STEADY), row("max", times)] for times in (before, after))
    ((*_, found),), regressions = compare.compare(old, new, "max", 0.05)
    assert found == verdict
    assert regressions == (verdict == "SLOWER")


def test_a_slower_machine_is_no_regression():
    old = [row("eager", STEADY), row("max", [0.5] * 3)]
    new = [row("eager", [t * 2 for t in STEADY]), row("max", [1.0] * 3)]
    assert compare.compare(old, new, "max", 0.05)[1] == 0


def test_noise_of_the_other_libraries_is_no_regression():
    old = [row("eager", [0.85, 1.0, 1.02]), row("max", [0.69, 0.7, 0.71])]
    new = [row("eager", [0.82, 0.85, 0.95]), row("max", [0.69, 0.7, 0.71])]
    assert compare.compare(old, new, "max", 0.05)[1] == 0
    old += [row("openvino", STEADY), row("max-package", STEADY), row("inductor", STEADY)]
    new += [row("openvino", STEADY), row("max-package", [2.0] * 3)]
    ((*_, change, _),), _ = compare.compare(old, new, "max", 0.05)
    assert change == "+8.5%", "eager and openvino are in both: 1 / sqrt(0.85)"


def test_comparison_of_files(tmp_path, capsys):
    for name, median in (("old", 0.5), ("new", 0.7)):
        rows = [row("eager", STEADY), row("max", [median] * 3)]
        results.write(tmp_path / name, {}, rows)
    files = [str(tmp_path / name / "results.json") for name in ("old", "new")]
    assert compare.main(files) == 1
    assert "+40.0%" in capsys.readouterr().out
    assert compare.main([files[0], files[0]]) == 0
    assert compare.main([*files, "--contestant", "openvino"]) == 1
    assert "no case of both files has openvino and another library" in capsys.readouterr().err


def test_plots(tmp_path):
    rows = [
        row(name, [t * batch, t * batch * 1.1], batch=batch, resolution=size)
        for name, t in (("eager", 0.02), ("max", 0.01))
        for batch in (1, 8)
        for size in (224, 384)
    ]
    written = plots.write(tmp_path, rows)
    assert sorted(path.name for path in written) == [
        "batch-vit-s-float32-resolution-224.svg",
        "batch-vit-s-float32-resolution-384.svg",
        "latency-vit-s-float32.svg",
        "resolution-vit-s-float32-batch-1.svg",
        "resolution-vit-s-float32-batch-8.svg",
    ]
    assert all(path.read_text().startswith("<?xml") for path in written)


def test_models_are_seeded_and_return_a_tensor():
    case = Case("vit-ti", 1, 32, "float32")
    model, again = cases.make_model(case), cases.make_model(case)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    x = cases.make_input(case)
    with torch.no_grad():
        assert model(x).shape == (1, 5, 192)
        for name in cases.MODELS.keys() - cases.SIZES.keys():
            shape = (1, 1000) if name.endswith("classifier") else (1, 5, 384)
            assert cases.make_model(Case(name, 1, 32, "float32"))(x).shape == shape


def test_flops_are_those_of_the_formula():
    tokens, width, ffn = 197, 192, 768
    block = tokens * width * (4 * width + 2 * ffn) + 2 * tokens * tokens * width
    patches = 196 * (3 * 16 * 16) * width
    assert cases.flops(Case("vit-ti", 2, 224, "float32")) == 2 * 2 * (12 * block + patches)
    alike = [cases.flops(Case(name, 1, 32, "float32")) for name in ("vit-s", "torch-vit-s")]
    assert alike[0] == alike[1]


def test_the_operations_of_a_block_are_the_block():
    norm, qkv, attention, out, up, down, block = block_ops.operations(2, 24, 96, 3, torch.float32)
    assert sum(o.flops * o.count for o in (norm, qkv, attention, out, up, down)) == block.flops
    (x,) = block.inputs
    y = attention.function(qkv.function(norm.function(x, *norm.inputs[1:]), *qkv.inputs[1:]))
    x = out.function(x, y, *out.inputs[2:])
    y = up.function(norm.function(x, *norm.inputs[1:]), *up.inputs[1:])
    x = down.function(x, y, *down.inputs[2:])
    torch.testing.assert_close(block.function(*block.inputs), x)


def test_table_of_a_block():
    found = block_ops.operations(2, 24, 96, 3, torch.float32)
    eager = {o.name: 0.002 for o in found} | {"block": 0.016}
    ours = {o.name: 0.001 for o in found} | {"block": 0.008}
    lines = block_ops.table(found, eager, ours).splitlines()
    assert len(lines) == 2 + 6 + 2
    assert lines[2].split()[-4:] == ["4.00", "2.00", "2.00", "25%"]
    assert "14.00" in lines[-2] and "88%" in lines[-2]
    assert "16.00" in lines[-1] and "100%" in lines[-1]


def test_passes_that_change_a_graph():
    fired = []
    with passes.only([passes.recorded(rewrite, fired) for rewrite in PASSES]):
        trace(torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.GELU()), torch.randn(3, 8))
    assert fired == [fuse_linear_activation]
    assert PASSES == torch_max_backend.passes.PASSES
    found = dict(passes.without_each(PASSES, fired))
    assert list(found) == ["fuse_linear_activation"]
    assert [*found["fuse_linear_activation"]] == [
        rewrite for rewrite in PASSES if rewrite not in fired
    ]


def test_steps_of_a_layer_are_the_layer():
    x, weight, bias, beside = (torch.randn(n) for n in ((4, 8), (6, 8), (6,), (4, 6)))
    for steps, operands, expected in [
        (epilogues.LAYERS["MLP up"], [bias], F.gelu(F.linear(x, weight, bias))),
        (
            epilogues.LAYERS["MLP down"],
            [bias, bias, beside],
            F.linear(x, weight, bias) * bias + beside,
        ),
    ]:
        found = epilogues.followed(steps)(x, weight, *operands)
        torch.testing.assert_close(found, expected)


def test_table_of_epilogues():
    times = {"call": 0.001}
    for layer, steps in epilogues.LAYERS.items():
        times[layer] = 0.011
        for count, step in enumerate(steps, 1):
            times[f"{layer}: {step.name}"] = 0.011 + count * 0.002
            times[f"{layer}, {step.name} alone"] = 0.004
    lines = epilogues.table(times).splitlines()
    assert lines[2].split() == ["qkv", "projection", "product", "10.00"]
    assert lines[3].split() == ["bias", "2.00", "3.00"]
    assert lines[-1].split() == ["all", "of", "them", "18.00", "27.00"]


def test_what_arithmetic_units_do_at_most():
    assert register_rate.rates()["float32"] > 1


def test_how_far_cores_are_apart(capsys, monkeypatch):
    assert core_latency.main() == 0
    number, unit = capsys.readouterr().out.split()
    assert float(number) > 1 and unit == "ns"
    monkeypatch.setattr(core_latency.os, "cpu_count", lambda: 1)
    with pytest.raises(SystemExit, match="two cores"):
        core_latency.main()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_waiting():
    """Of a call that sleeps, by time slices that MAX's workers then have."""
    session()
    found = waiting.by_slices(lambda: time.sleep(0.002), [3, 20], rounds=1)
    for worker in max_workers():
        assert time_slice(worker) in (20_000_000, 0)
        set_time_slice(worker, SLICE)
    for line, length in zip(waiting.table(found).splitlines()[2:], [3, 20], strict=True):
        shown, fastest, *_, waited, slept = map(float, line.split())
        assert shown == length and fastest >= 2 and waited >= 0 and slept >= 1


def test_startup(monkeypatch, capsys):
    asked = []

    def measure(model, contestant, environment):
        asked.append((contestant, environment["TORCH_MAX_BACKEND_CACHE_DIR"]))
        parts = dict.fromkeys(startup.PHASES, 0.1) if contestant == "max" else {}
        return {"import torch": 1.0, startup.FIRST: float(len(asked)), **parts}

    monkeypatch.setattr(startup, "_in_a_process", measure)
    assert startup.main(["--rounds", "2"]) == 0
    assert [name for name, _ in asked] == [*startup.CONTESTANTS] * 3, "they take turns"
    assert len({folder for name, folder in asked if name == "max"}) == 1
    lines = capsys.readouterr().out.splitlines()
    (first,) = [line.split() for line in lines if line.startswith("first result")]
    assert first[4:] == ["8.50", "9.50", "10.50", "11.50", "12.50"]  # the first of 3 is not counted
    (rest,) = [line.split() for line in lines if line.startswith("Dynamo")]
    assert rest[-1] == "8.00"
    asked.clear()
    assert startup.main(["--rounds", "2", "--cold"]) == 0
    assert len(set(asked)) == len(asked) == 10


def test_memory(monkeypatch, capsys):
    def measure(case, contestant):
        if contestant == "openvino":
            raise WorkerError("not installed", left_out=True)
        if contestant == "inductor":
            raise WorkerError("Traceback\nOSError: no compiler")
        sizes = (100, 200, 150 + case.batch, 90)
        return [2**20 * n * (1 + (contestant == "max")) for n in sizes]

    monkeypatch.setattr(memory, "measure", measure)
    chosen = ["--model", "vit-ti", "--batches", "1", "50", "--contestants"]
    assert memory.main([*chosen, "eager", "max", "openvino"]) == 0
    title, _, _, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("vit-ti, float32, weights 21 MiB")
    assert lines[0].split() == ["1", "eager", "100", "200", "151", "90", "1.00", "1.00"]
    assert lines[4].split() == ["50", "max", "200", "400", "400", "180", "2.00", "2.00"]
    assert lines[2].split() == ["1", "openvino", "not", "installed"]
    assert memory.main([*chosen, "inductor"]) == 1
    assert "OSError: no compiler" in capsys.readouterr().out


def test_memory_of_a_process():
    imports, first, later, of_no_file = memory.measure(Case("vit-ti", 1, 32, "float32"), "eager")
    assert 2**26 < imports <= first and later > of_no_file > 2**26


def test_packages(monkeypatch, capsys):
    made = {"export": 20.0, "package": 2**20 * 5, "weights": 2**20 * 4}
    one = {"load": 0.1, "first result": 0.2, "loaded": 2**20 * 6, "images/s, 1 thread": 7.0}
    rounds = iter([one, one])
    monkeypatch.setattr(packages, "export_model", lambda *_: made)
    monkeypatch.setattr(packages, "_in_a_process", lambda _: next(rounds))
    assert packages.main(["--models", "vit-s", "--rounds", "2"]) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["vit-s"]
    assert [" ".join(line.split()) for line in lines] == [
        *["export, s 20.000", "package, MiB 5", "weights, MiB 4"],
        *["load, s 0.100", "first result, s 0.200", "loaded, MiB 6", "images/s, 1 thread 7.0"],
    ]


def test_packages_by_turns(monkeypatch, capsys):
    called = []

    def package(path, result):
        def run(inputs):
            called.append(path.name)
            return [torch.tensor([result]), None]

        return SimpleNamespace(example_inputs=lambda: [1], run=run)

    results = {"a.max": 2.0, "b.max": 2.0001, "c.max": 2.1, "d.max": math.nan}
    monkeypatch.setattr(by_turns, "load", lambda path: package(path, results[path.name]))
    monkeypatch.setattr(by_turns, "seconds", lambda call: call() and 0.1)
    assert by_turns.main(["a.max", "b.max", "--rounds", "2"]) == 0
    turns = [name for name, _ in itertools.groupby(called)]
    assert turns == ["a.max", "b.max", "a.max", "b.max", "a.max"]
    assert "x median" in capsys.readouterr().out
    for wrong in ("c.max", "d.max"):
        assert by_turns.main(["a.max", wrong, "--rounds", "1"]) == 1


def test_table_of_turns():
    head, _, before, after = by_turns.table("ab", [[0.4, 0.2, 0.3], [0.1, 0.1, 0.1]]).splitlines()
    assert before.split() == ["a", "200.00", "220.00", "250.00", "300.00", *["1.000"] * 4]
    assert after.split() == ["b", *["100.00"] * 4, "2.000", "2.200", "2.500", "3.000"]


def test_environment_is_json():
    found = environment.environment()
    assert found["versions"]["torch"] == torch.__version__
    assert json.loads(json.dumps(found)) == found


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    before = environment.environment() | {"date": "yesterday", "commit": "abc"}
    results.write(tmp_path, before, [row("max", [0.1], batch=1), row("eager", [0.3], batch=1)])
    ran = []

    def run(case, args):
        ran.append(case)
        return [row("max", [0.2], batch=case.batch)]

    monkeypatch.setattr(vit_inference, "_run_case", run)
    monkeypatch.setattr(plots, "write", lambda folder, rows: [])
    wanted = ["--models", "vit-s", "--dtypes", "float32", "--batches", "1", "8"]
    command = [*wanted, "--contestants", "max", "--output-dir", str(tmp_path), "--resume"]
    assert vit_inference.main(command) == 0
    assert ran == [Case("vit-s", 8, 224, "float32")]
    assert "3.00" in capsys.readouterr().out, "the table is of both runs"
    found, rows = results.read(tmp_path / "results.json")
    assert [r.batch for r in rows] == [1, 1, 8]
    assert found["date"] == "yesterday"
    assert found["commit"] == f"abc, {environment.environment()['commit']}"
    rows[-1].failed = True
    results.write(tmp_path, found, rows)
    assert vit_inference.main(command) == 0
    assert [case.batch for case in ran] == [8, 8], "what failed is run again"
    vit_inference.main([*command, "--contestants", "max", "eager"])
    assert [case.batch for case in ran] == [8, 8, 8], "and what a contestant is missing of"
    assert [r.batch for r in results.read(tmp_path / "results.json")[1]] == [1, 1, 8]
    results.write(tmp_path, found | {"cores": 1000}, rows)
    assert vit_inference.main(command) == 2
    assert "cores 1000" in capsys.readouterr().err
    assert len(ran) == 3


def test_turns(monkeypatch):
    monkeypatch.setattr(vit_inference.time, "sleep", lambda seconds: None)
    done = []

    def worker(name, taken):
        def run(count):
            done.append((name, count))
            return [taken] * count

        def matmul(count):
            done.append((name, "product"))
            return [1.0] * count

        def peak_memory():
            done.append((name, "peak"))
            return 7

        commands = {"run": run, "matmul": matmul, "peak_memory": peak_memory}
        return SimpleNamespace(reset_peak=lambda: None, **commands)

    workers = {"max": worker("max", 0.25), "eager": worker("eager", 60.0)}
    rows = {name: Row("vit-s", 8, 224, "float32", name) for name in workers}
    vit_inference._time_in_turns(workers, rows, 3)
    assert rows["max"].times == [0.25] * 12, "three turns of a second"
    assert rows["eager"].times == [60.0] * 2, "120 s are enough"
    assert [count for name, count in done if name == "eager" and count != "product"] == [
        *(1, 0, 1, "peak", 0, 1)
    ], "a slow one is not woken by untimed calls"
    for name in workers:
        assert done.index((name, "peak")) < done.index((name, "product"))
        assert rows[name].peak_memory == 7
        assert rows[name].matmul_flops_per_second > 0


def test_wrong_arguments_are_one_line():
    for argument in (["--models", "vit-x"], ["--batches", "0"], ["--contestants", "tensorrt"]):
        command = [sys.executable, "-m", "benchmarks.vit_inference", *argument]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert argument[0] in done.stderr.splitlines()[-1]
    assert set(CONTESTANTS) == set(plots.COLOURS)


@pytest.mark.skipif(environment.environment()["commit"] is None, reason="needs git and a clone")
def test_revisions_by_turns(capsys):
    case = ["--model", "vit-ti", "--batch", "1", "--rounds", "1", "--contestant"]
    assert revisions.main(["HEAD", "HEAD", *case, "eager"]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("revision") and [line.split()[0] for line in lines] == ["HEAD"] * 2
    assert revisions.main(["HEAD", *case, "no-such-contestant"]) == 1
    assert "HEAD: the process ended with 1" in capsys.readouterr().err
    assert revisions.main(["no-such-revision", *case, "eager"]) == 1
    assert "no revision 'no-such-revision'" in capsys.readouterr().err
