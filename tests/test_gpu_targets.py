"""GPUs without a GPU: lowerings placed on a device, code for CUDA and HIP, inputs and streams.

Graphs are traced on the CPU and then moved: a CPU build of torch cannot run cuda tensors, but it
can describe them.
"""

import zipfile
from types import SimpleNamespace

import pytest
import torch
from torch import nn


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


def vit(dtype, **changes):
    """A ViT of one layer; heads are 64 wide, as in most published models.

    Every distinct matrix shape costs half a minute of compile, symbolic sizes in bfloat16 two
    minutes on sm_90, so they are few.
    """
    from vit import ViTConfig

    torch.manual_seed(0)
    config = ViTConfig(1, (8, 8), (32, 24), 1, 64, 64, 1, dtype=dtype, **changes)
    return config.instantiate().eval()


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
    assert metadata["gpu"] == {"api": api, "architecture": architecture}
    assert metadata["device"] == "cuda"
    assert {entry["device"] for entry in metadata["inputs"] + metadata["constants"]} == {"cuda"}
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo(f"model/{package.EXECUTABLE}").file_size > 10_000
    if not torch.accelerator.is_available():
        with pytest.raises(PackageDeviceError, match="needs a cuda device"):
            load(path)


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


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype)


def integers(high, *shape):
    return torch.randint(0, high, shape)


def attend(q, k, v, **kw):
    return nn.functional.scaled_dot_product_attention(q, k, v, **kw)


QKV = [randn(2, 3, 5, 64) for _ in range(3)]
MODELS = {
    "rope, layernorm": {"pos_enc": "rope", "norm_type": "layernorm"},
    "learnable, rmsnorm": {"pos_enc": "learnable", "norm_type": "rmsnorm"},
    "fourier, tokens": {"pos_enc": "fourier", "num_cls_tokens": 1, "num_register_tokens": 2},
    "swiglu": {"pos_enc": "none", "activation": "swiglu", "qk_normalization": True},
}
FUNCTIONS = {
    "arange": (lambda x: x + torch.arange(x.shape[0], device=x.device), [randn(6)]),
    "as_strided": (lambda x: x.as_strided((2, 3), (1, 2)) * 2, [randn(6)]),
    "attention": (attend, QKV),
    "attention, causal": (lambda q, k, v: attend(q, k, v, is_causal=True), QKV),
    "attention, mask": (
        lambda q, k, v, m: attend(q, k, v, attn_mask=m),
        [*QKV, randn(5, 5) > 0],
    ),
    "attention, bias": (lambda q, k, v, m: attend(q, k, v, attn_mask=m), [*QKV, randn(5, 5)]),
    "attention, double": (attend, [x.double() for x in QKV]),
    "constant": (lambda x: x * torch.tensor([1.0, 2.0, 3.0]), [randn(4, 3)]),
    "conv": (
        lambda x, w: nn.functional.conv2d(x, w, padding=1),
        [randn(1, 4, 8, 8), randn(2, 4, 3, 3)],
    ),
    "cumsum": (lambda x: x.cumsum(0), [randn(5, 3)]),
    "flip": (lambda x: x.flip(0, 1), [randn(4, 3)]),
    "full": (lambda x: torch.full_like(x, 2.5) + x.new_zeros(3), [randn(4, 3)]),
    "gather": (lambda x, i: x.gather(1, i), [randn(4, 6), integers(6, 4, 6)]),
    "group_norm": (lambda x: nn.functional.group_norm(x, 2), [randn(2, 4, 6, 6)]),
    "index": (lambda x, i: x[i] + x[:, i].sum(), [randn(4, 6), integers(4, 3)]),
    "index_put": (lambda x, i: x.index_put((i,), x[i] * 2), [randn(4, 6), integers(4, 3)]),
    "masked_fill": (lambda x: x.masked_fill(x > 0, -1.0), [randn(4, 3)]),
    "pad": (lambda x: nn.functional.pad(x, (1, 2), value=3.0), [randn(4, 3)]),
    "power": (lambda x: x.abs() ** 1.7 + x**2, [randn(4, 3)]),
    "random": (lambda x: x + torch.rand_like(x), [randn(4, 3)]),
    "reductions": (lambda x: (x.amax(1), x.argmax(1), x.var(1), x.mean()), [randn(4, 3)]),
    "resize": (
        lambda x: nn.functional.interpolate(x, size=(5, 7), mode="bicubic"),
        [randn(1, 2, 4, 4)],
    ),
    "roll": (lambda x: x.roll((1, -1), (0, 1)), [randn(4, 3)]),
    "scatter": (lambda x, i: x.scatter(1, i, 2.0), [randn(4, 6), integers(6, 4, 6)]),
    "select": (lambda x: x[-1] + x[:, 1:].sum(), [randn(4, 6)]),
    "slice_scatter": (lambda x: torch.slice_scatter(x, x[1:] * 2, 0, 1), [randn(4, 6)]),
    "softmax": (lambda x: x.softmax(-1) + x.log_softmax(0), [randn(4, 6)]),
    "sort": (lambda x: x.sort(-1), [randn(4, 6)]),
    "topk": (lambda x: x.topk(2), [randn(4, 6)]),
    "tril": (lambda x: x.tril() + x.triu(1), [randn(4, 4)]),
    "where": (lambda x: torch.where(x > 0, x, 0.0), [randn(4, 3)]),
}
STATIC_ONLY = {"as_strided", "conv", "group_norm", "sort", "topk"}


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
def test_models_are_lowered_on_the_gpu(name, dynamic):
    model = vit(torch.float32, **MODELS[name])
    graph, _ = gpu_graph(lambda x: model(x).visual_tokens, randn(2, 1, 32, 24), dynamic=dynamic)
    assert_on_gpu(graph)
    assert "mo.mha.no_cache" in str(graph)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_takes_the_flash_kernel(dtype):
    args = [x.to(dtype) for x in QKV]
    for causal in (False, True):
        graph, _ = gpu_graph(lambda q, k, v, c=causal: attend(q, k, v, is_causal=c), *args)
        assert "mo.mha.no_cache" in str(graph)


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
    monkeypatch.setattr(graph, "_bind", lambda args: ([], set()))
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
