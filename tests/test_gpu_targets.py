"""GPUs without a GPU: lowerings placed on a device, code for CUDA and HIP, inputs and streams.

Graphs are traced on the CPU and then moved: a CPU build of torch cannot run cuda tensors, but it
can describe them.
"""

import zipfile
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.gpu_cases import FUNCTIONS, MODELS, QKV, STATIC_ONLY, attend, randn, vit


def gpu_graph(function, *args, dynamic=False):
    """The MAX graph of a function on the GPU, and the module that holds it."""
    from max.graph import Module

    from tests.tracing import trace
    from torch_max_backend.graph_builder import build_graph
    from torch_max_backend.options import MaxOptions

    module = Module()
    gm = trace(function, *args, dynamic=dynamic, on_gpu=True)
    graph, _ = build_graph(gm, module, "g0", MaxOptions())
    return graph, module


# --------------------------------------------------------------------------- code for a target

# architecture: API, dtype, options of the model, symbolic batch
TARGETS = {
    "sm_80": ("cuda", "float32", {"norm_type": "layernorm", "pos_enc": "rope"}, False),
    "sm_90": ("cuda", "bfloat16", {"norm_type": "rmsnorm", "pos_enc": "learnable"}, False),
    # in bfloat16, MAX 26.6 chooses instructions that gfx942 lacks, for matrix products and for
    # flash attention; attention is composed on HIP
    "gfx942": ("hip", "float32", {"norm_type": "layernorm", "pos_enc": "rope"}, True),
}


@pytest.mark.gpu_target
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("architecture", TARGETS)
def test_a_vit_is_exported_for_a_gpu_that_is_not_here(architecture, tmp_path):
    """Minutes for each architecture: MAX compiles many forms of a matrix product for a GPU."""
    api, dtype, changes, dynamic = TARGETS[architecture]
    model = vit(getattr(torch, dtype), **changes)
    x = torch.randn(2, 1, 32, 24, dtype=getattr(torch, dtype))
    shapes = None if dynamic else "static"
    assert_exported_for(architecture, api, model, x, tmp_path / "vit.max", shapes)


def test_layers_are_exported_for_a_gpu_that_is_not_here(tmp_path):
    model = nn.Sequential(nn.LayerNorm(64), nn.GELU()).eval()
    assert_exported_for("sm_90", "cuda", model, randn(24, 64), tmp_path / "layers.max", "static")


def assert_exported_for(architecture, api, model, x, path, dynamic_shapes):
    from torch_max_backend import export, load, load_metadata_from_package
    from torch_max_backend.aot import package
    from torch_max_backend.errors import PackageDeviceError

    export(model, (x,), path=path, gpu=architecture, dynamic_shapes=dynamic_shapes)
    metadata = load_metadata_from_package(path)
    expected = {"sm_90": "sm_90a"}.get(architecture, architecture)
    assert metadata["gpu"] == {"api": api, "architecture": expected}
    assert metadata["device"] == "cuda"
    assert {entry["device"] for entry in metadata["inputs"] + metadata["constants"]} == {"cuda"}
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo(f"model/{package.EXECUTABLE}").file_size > 10_000
    if not torch.accelerator.is_available():
        with pytest.raises(PackageDeviceError, match="needs a cuda device"):
            load(path)


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("sm_80", "sm_80"),
        ("sm_89", "sm_89"),
        ("sm_90", "sm_90a"),
        ("sm_90a", "sm_90a"),
        ("sm_100", "sm_100a"),
        ("sm_120f", "sm_120f"),
        ("gfx942", "gfx942"),
    ],
)
def test_architectures_have_the_names_that_max_gives_them(gpu, name):
    """An H100 is "sm_90a" to MAX; a package for "sm_90" must not be refused on it."""
    from torch_max_backend.aot.gpu_target import architecture_of

    assert architecture_of(gpu) == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpu": "h100"}, "gpu='h100'; it is an architecture of NVIDIA such as 'sm_90'"),
        ({"gpu": "sm_90", "device": "cuda"}, "for a model on the CPU"),
        ({"gpu": "sm_90", "verify": True}, "verify=True would run the package"),
        ({"cpu": "pentium"}, "cpu='pentium'; on this machine it is one of 'native'"),
    ],
)
def test_wrong_targets(arguments, message, tmp_path):
    from torch_max_backend import ExportError, export

    with pytest.raises(ExportError, match=message):
        export(nn.Linear(2, 2).eval(), (randn(1, 2),), path=tmp_path / "x.max", **arguments)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------- lowerings on a device


@pytest.fixture
def tf32():
    """Products need no more precision than MAX's own have."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def assert_on_gpu(graph):
    text = str(graph)
    signature = next(line for line in text.splitlines() if "mo.graph" in line)
    results = signature.split("->")[1].split("attributes")[0]
    assert results.count("gpu:0") == results.count("!mo.tensor"), results
    assert "_cpu" not in text.replace("gpu:0", ""), "a kernel for CPUs alone"


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_are_lowered_on_the_gpu(name, dynamic):
    """Building checks that operands meet on one device; no compile."""
    if dynamic and name in STATIC_ONLY:
        dynamic = False
    function, args = FUNCTIONS[name]
    graph, _ = gpu_graph(function, *args, dynamic=dynamic)
    assert_on_gpu(graph)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", MODELS)
def test_models_are_lowered_on_the_gpu(name, dynamic, tf32):
    model = vit(torch.float32, **MODELS[name])
    graph, _ = gpu_graph(lambda x: model(x).visual_tokens, randn(2, 1, 32, 24), dynamic=dynamic)
    assert_on_gpu(graph)
    assert "mo.mha.no_cache" in str(graph)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_takes_the_flash_kernel(dtype, tf32):
    args = [x.to(dtype) for x in QKV]
    for causal in (False, True):
        graph, _ = gpu_graph(lambda q, k, v, c=causal: attend(q, k, v, is_causal=c), *args)
        assert "mo.mha.no_cache" in str(graph)


# ------------------------------------------------------------------------- products on NVIDIA's


@pytest.fixture
def nvidia(monkeypatch):
    from torch_max_backend.ops import gpu_products

    monkeypatch.setattr(gpu_products, "accelerator_api", lambda: "cuda")


def product_lines(graph):
    return [line for line in str(graph).splitlines() if "matmul" in line]


def test_products_of_float32_have_all_their_bits(nvidia):
    graph, _ = gpu_graph(nn.functional.linear, randn(3, 8), randn(5, 8))
    (line,) = product_lines(graph)
    assert "[3, 48]" in line and "[48, 5]" in line
    graph, _ = gpu_graph(attend, *QKV)
    assert "mo.mha.no_cache" not in str(graph)


def test_products_of_float32_are_fast_where_pytorch_is_told_so(nvidia, tf32):
    graph, _ = gpu_graph(nn.functional.linear, randn(3, 8), randn(5, 8))
    (line,) = product_lines(graph)
    assert "[3, 8]" in line and "[8, 5]" in line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_half_precision_are_computed_in_float32(dtype, nvidia):
    graph, _ = gpu_graph(torch.mm, randn(3, 8, dtype=dtype), randn(8, 5, dtype=dtype))
    (line,) = product_lines(graph)
    assert "[3, 8], f32" in line and "[8, 5], f32" in line


def test_factors_in_parts_give_the_product_of_float32():
    """Their numbers are exact in TF32, so that only the sums are rounded; infinities stay."""
    from max.driver import CPU
    from max.dtype import DType
    from max.engine import InferenceSession
    from max.graph import DeviceRef, Graph, TensorType

    from torch_max_backend.ops.gpu_products import split_factors

    a, b = randn(9, 70) * torch.logspace(-20, 18, 70), randn(5, 70) * torch.logspace(20, -18, 70)
    a[0, 3], a[1, 4], b[2, 5] = torch.inf, -torch.inf, torch.inf
    a[2, 0] = torch.finfo(torch.float32).max
    types = [TensorType(DType.float32, x.shape, DeviceRef.CPU()) for x in (a, b, a, b.T)]

    def both(a, right, c, b):
        return *split_factors(a, right, True), *split_factors(c, b, False)

    graph = Graph("parts", both, input_types=types)
    model = InferenceSession(devices=[CPU()]).load(graph)
    results = model.execute(*(x.contiguous() for x in (a, b, a, b.T)))
    left, right, again, turned = map(torch.from_dlpack, results)
    assert torch.equal(left, again) and torch.equal(right, turned.T)
    assert torch.equal(left, left.bfloat16().float())
    expected = a.double() @ b.double().T
    found = left.double() @ right.double().T
    assert torch.equal(found.isnan(), expected.isnan())
    bound = torch.finfo(torch.float32).eps * (a.double().abs() @ b.double().abs().T)
    finite = bound.isfinite()
    assert finite.sum() > 20
    assert ((found - expected).abs() < bound)[finite].all()
    infinite = expected.isinf()
    assert infinite.any() and torch.equal(found[infinite], expected[infinite])


# ------------------------------------------------------------------------------------- devices


def test_devices_map_both_ways():
    from max.graph import DeviceRef

    from torch_max_backend.accelerators import get_accelerators, to_device, to_device_ref

    assert to_device_ref(torch.device("cpu")) == DeviceRef.CPU()
    assert to_device_ref(torch.device("cuda")) == DeviceRef.GPU(0)
    assert to_device_ref(torch.device("cuda", 3)) == DeviceRef.GPU(3)
    assert to_device_ref(torch.device("mps")) == DeviceRef.GPU(0)
    assert to_device(DeviceRef.CPU()) == get_accelerators()[-1]
    assert get_accelerators()[-1].is_host


@pytest.mark.parametrize("device", ["meta", "xpu", "hpu"])
def test_devices_that_max_has_not(device):
    from torch_max_backend import InputError
    from torch_max_backend.accelerators import to_device_ref

    with pytest.raises(InputError, match=f"{device}.*'cpu', 'cuda' or 'mps'"):
        to_device_ref(torch.device(device))


def test_an_accelerator_that_is_not_there():
    from max.graph import DeviceRef

    from torch_max_backend import InputError
    from torch_max_backend.accelerators import get_accelerators, to_device

    beyond = len(get_accelerators())
    with pytest.raises(InputError, match=f"needs accelerator {beyond}"):
        to_device(DeviceRef.GPU(beyond))


def compiled_graph(gm, weights=(), devices=()):
    from torch_max_backend.executable import CompiledGraph
    from torch_max_backend.signature_reading import read_signature

    model = SimpleNamespace(devices=list(devices))
    return CompiledGraph("inference5", gm, read_signature(gm), weights, lambda: model)


@pytest.mark.parametrize("weights", [(), (0, 1)], ids=["inputs", "weights"])
def test_an_input_on_the_wrong_device_is_one_clear_error(weights):
    from tests.tracing import trace
    from torch_max_backend import InputError

    args = [randn(3), randn(3)]
    graph = compiled_graph(trace(lambda x, y: x + y, *args, on_gpu=True), weights)
    with pytest.raises(InputError) as caught:
        graph(list(args))
    assert str(caught.value) == (
        "argument 0 of inference5 is on cpu, the graph was compiled for cuda:0; "
        "move it there with .to('cuda:0')"
    )


def test_a_graph_of_the_cpu_refuses_other_devices():
    from tests.tracing import trace
    from torch_max_backend import InputError

    graph = compiled_graph(trace(lambda x, y: x + y, randn(3), randn(3)))
    with pytest.raises(InputError, match="argument 1 of inference5 is on meta.*for cpu"):
        graph([randn(3), torch.empty(3, device="meta")])


# ------------------------------------------------------------------------------------- streams


class Stream:
    """Notes what waits for what."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """Fakes of torch's streams; what happens on them, in order."""
    from torch_max_backend import streams

    events: list[str] = []
    cuda, mps = streams.torch.cuda, streams.torch.mps
    monkeypatch.setattr(
        cuda, "ExternalStream", lambda handle, device: Stream(f"max {device} {handle}", events)
    )
    monkeypatch.setattr(cuda, "current_stream", lambda index: Stream(f"torch {index}", events))
    monkeypatch.setattr(mps, "synchronize", lambda: events.append("torch mps done"))
    return events


def accelerator(index, api="cuda", log=None):
    queue = SimpleNamespace(native_stream_handle=100 + index)
    return SimpleNamespace(
        id=index,
        api=api,
        is_host=False,
        default_queue=queue,
        synchronize=lambda: log.append(f"max {index} done"),
    )


HOST = SimpleNamespace(is_host=True)


def test_each_side_waits_for_the_other(log):
    from torch_max_backend.streams import StreamOrder

    order = StreamOrder([accelerator(0), accelerator(1), HOST])
    order.before_run()
    assert log == ["max cuda:0 100 waits for torch 0", "max cuda:1 101 waits for torch 1"]
    log.clear()
    order.after_run()
    assert log == ["torch 0 waits for max cuda:0 100", "torch 1 waits for max cuda:1 101"]


def test_the_stream_is_the_current_one_of_each_call(log, monkeypatch):
    from torch_max_backend import streams

    order = streams.StreamOrder([accelerator(0)])
    monkeypatch.setattr(streams.torch.cuda, "current_stream", lambda i: Stream("side", log))
    order.before_run()
    assert log == ["max cuda:0 100 waits for side"]


def test_the_host_waits_for_nothing(log):
    from torch_max_backend.streams import StreamOrder

    order = StreamOrder([HOST])
    order.before_run()
    order.after_run()
    assert log == []


def test_metal_is_waited_for_on_the_host(log):
    from torch_max_backend.streams import StreamOrder

    StreamOrder([accelerator(0, "metal", log)]).before_run()
    assert log == ["torch mps done", "max 0 done"]


def test_a_run_stands_between_the_waits(log, monkeypatch):
    from tests.tracing import trace
    from torch_max_backend import executable

    graph = compiled_graph(
        trace(lambda x: x + 1, randn(3), on_gpu=True), devices=[accelerator(0), HOST]
    )
    monkeypatch.setattr(graph, "_bind", lambda args, held: ([], ()))
    monkeypatch.setattr(graph, "_finish", lambda results, args, pointers: results)
    monkeypatch.setattr(executable, "execute_buffers", lambda model, buffers: log.append("run"))
    graph([randn(3)])
    assert log == ["max cuda:0 100 waits for torch 0", "run", "torch 0 waits for max cuda:0 100"]


def test_a_graph_on_the_cpu_has_no_streams(log, monkeypatch):
    from tests.tracing import trace
    from torch_max_backend import executable

    graph = compiled_graph(trace(lambda x: x + 1, randn(3)), devices=[accelerator(0), HOST])
    monkeypatch.setattr(graph, "_finish", lambda results, args, pointers: results)
    monkeypatch.setattr(executable, "execute_buffers", lambda model, buffers: log.append("run"))
    graph([randn(3)])
    assert log == ["run"]
