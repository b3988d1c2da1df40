"""Numbers of this machine's GPU beside eager PyTorch's on it; needs one (CUDA or HIP)."""

import pytest
import torch
from torch import nn

from tests.gpu_cases import FUNCTIONS, MODELS, STATIC_ONLY, attend, vit
from tests.harness import Case, comparison, randn, short
from tests.models import model_case

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

GPU = torch.device("cuda", 0)
HALVES = (torch.bfloat16, torch.float16)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def case(name, function, args, dtype=None, **settings):
    """All static cases share a graph, and the symbolic ones another.

    How attention's result lies depends on the kernel that PyTorch chooses on CUDA.
    """
    if name.startswith("attention"):
        function = dense(function)
    args = [x.to(GPU) for x in args]
    if dtype is not None:
        args = [x.to(dtype) if x.is_floating_point() else x for x in args]
        name = f"{name}-{short(dtype)}"
    return Case(name, function, args, scale="tensor", group="functions", **settings)


def dense(function):
    return lambda *args: function(*args).contiguous()


def gelu_of_linear(x, w, b):
    return nn.functional.gelu(nn.functional.linear(x, w, b))


def layer_norm(x, w, b):
    return nn.functional.layer_norm(x, (x.shape[-1],), w, b)


PRODUCTS = {
    "linear": (gelu_of_linear, [randn(197, 192), randn(72, 192, scale=0.1), randn(72)]),
    "linear, odd": (gelu_of_linear, [randn(3, 7), randn(5, 7), randn(5)]),
    "bmm": (torch.bmm, [randn(3, 17, 40), randn(3, 40, 24)]),
    "layer_norm": (layer_norm, [randn(33, 192), randn(192), randn(192)]),
    "attention": (attend, [randn(2, 3, 50, 64, seed=name) for name in "qkv"]),
    "softmax": (lambda x: x.softmax(-1), [randn(9, 197)]),
    "patches": (
        lambda x, w: nn.functional.conv2d(x, w, stride=8),
        [randn(2, 3, 32, 24), randn(48, 3, 8, 8, scale=0.1)],
    ),
}
CASES = [
    *(
        case(name, function, args, layout_only=name == "random")
        for name, (function, args) in FUNCTIONS.items()
    ),
    *(
        case(f"{name}, symbolic", function, args, dynamic=True, layout_only=name == "random")
        for name, (function, args) in FUNCTIONS.items()
        if name not in STATIC_ONLY
    ),
    *(
        case(f"{name} of layers", function, args, dtype)
        for name, (function, args) in PRODUCTS.items()
        for dtype in (torch.float32, *HALVES)
    ),
    case("transposed", torch.add, [randn(5, 7).T, randn(7, 5)]),
    case("sliced", lambda x: x.exp(), [randn(9, 8)[1::2, ::2]]),
    *(
        model_case(
            name,
            vit(torch.float32, **changes).to(GPU),
            randn(2, 1, 32, 24).to(GPU),
            results=lambda features: features.visual_tokens,
            dtype=dtype,
            dynamic=False,
        )
        for name, changes in MODELS.items()
        for dtype in (torch.float32, torch.bfloat16)
    ),
]
test_case = comparison(CASES)


@pytest.fixture(scope="module")
def layers():
    """Compiled once; (eager, compiled)."""
    from torch_max_backend import max_backend

    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(64), nn.GELU()).eval().to(GPU)
    return model, torch.compile(model, backend=max_backend)


@torch.no_grad()
def test_calls_are_ordered_with_torchs_work_on_its_stream(layers):
    """What torch still computes is waited for, and torch waits for MAX, on any stream."""
    model, compiled = layers
    compiled(torch.randn(4096, 64, device=GPU))
    for stream in (torch.cuda.Stream(), torch.cuda.default_stream()):
        with torch.cuda.stream(stream):
            for seed in range(5):
                torch.manual_seed(seed)
                busy = torch.randn(2048, 2048, device=GPU)
                for _ in range(20):
                    busy = torch.tanh(busy @ busy)
                x = busy.reshape(-1, 64)[:4096] * 2 + 1
                found = compiled(x) * 3
                x.zero_()  # not before MAX has read it
                again = (busy.reshape(-1, 64)[:4096] * 2 + 1).contiguous()
                torch.testing.assert_close(found, model(again) * 3, **CLOSE)
        torch.cuda.synchronize()


@torch.no_grad()
def test_weights_that_change_are_seen(layers):
    model, compiled = layers
    x = torch.randn(4096, 64, device=GPU)
    model[0].weight.copy_(torch.randn(64))
    torch.testing.assert_close(compiled(x), model(x), **CLOSE)
    model[0].bias.data = torch.randn(64, device=GPU)
    torch.testing.assert_close(compiled(x), model(x), **CLOSE)


@pytest.mark.parametrize("target", ["here", "named"])
@torch.no_grad()
def test_packages(target, tmp_path):
    """Exported on the GPU, and on the CPU for it."""
    from torch_max_backend import export, load
    from torch_max_backend.accelerators import this_gpu

    model = nn.Sequential(nn.LayerNorm(64), nn.GELU()).eval()
    x = torch.randn(24, 64)
    expected = model(x)
    path = tmp_path / "layers.max"
    if target == "here":
        export(model, (x,), path=path, device=GPU, verify=True)
    else:
        architecture = this_gpu()["architecture"]
        export(model, (x,), path=path, gpu=architecture, dynamic_shapes="static")
    found = load(path)(x.to(GPU))
    assert found.device == GPU
    torch.testing.assert_close(found.cpu(), expected, **CLOSE)
