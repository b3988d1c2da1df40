"""Keys of Dynamo's graphs: equal only where AOTAutograd would make the same of them."""

import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_max_backend import MaxOptions, register_lowering, registry
from torch_max_backend.dynamo_key import dynamo_key

ROOT = Path(__file__).parents[1]
X = torch.randn(4, 6)


def key_of(function, *args, options=None, dynamic=False, around=None):
    """The key of the one graph that Dynamo makes of a call."""
    keys = []

    def backend(gm, inputs):
        keys.append(dynamo_key(gm, inputs, options or MaxOptions()))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, dynamic=dynamic)(*args)
    (key,) = keys
    return key


def region(body):
    marked = torch.compiler.nested_compile_region(body)
    return lambda x: marked(marked(x))


def test_a_graph_has_one_key():
    def renamed(another_name):
        doubled = another_name * 2
        return F.gelu(doubled).sum(dim=-1)

    key = key_of(lambda x: F.gelu(x * 2).sum(dim=-1), X)
    assert len(key) == 64
    assert key == key_of(lambda x: F.gelu(x * 2).sum(dim=-1), X + 1) == key_of(renamed, X)


def test_another_process_with_another_hash_seed():
    script = "from tests.test_dynamo_key import process_key; print('KEY', process_key())"
    keys = {process_key()}
    for seed in ("1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        keys.add(done.stdout.split("KEY ")[1].split()[0])
    assert len(keys) == 1


def process_key():
    block = region(lambda x: F.layer_norm(x, (6,)).relu())
    return key_of(lambda x, w: F.linear(block(x), w, None)[..., 1:], X, nn.Parameter(X))


PAIRS = {
    "a number": (lambda x: x + 1, lambda x: x + 2),
    "an int and a float": (lambda x: x + 1, lambda x: x + 1.0),
    "an int and a bool": (lambda x: x + 1, lambda x: x + True),
    "a float in its last bit": (lambda x: x + 0.1, lambda x: x + 0.10000000000000002),
    "a function": (lambda x: torch.sin(x), lambda x: torch.cos(x)),
    "a method": (lambda x: x.sin(), lambda x: x.cos()),
    "the order of operands": (lambda x: x - x.sin(), lambda x: x.sin() - x),
    "a keyword": (lambda x: F.gelu(x), lambda x: F.gelu(x, approximate="tanh")),
    "a slice": (lambda x: x[1:] * 2, lambda x: x[:1] * 2),
    "a dtype": (lambda x: x.to(torch.float16), lambda x: x.to(torch.bfloat16)),
    "the body of a region": (region(lambda x: x.sin() * 2), region(lambda x: x.sin() * 3)),
    "which result": (lambda x: x.max(0)[0], lambda x: x.max(0)[1]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_another_graph(name):
    first, second = PAIRS[name]
    keys = [key_of(first, X), key_of(second, X)]
    assert None not in keys and keys[0] != keys[1]


def test_another_constant():
    graph = torch.fx.Graph()
    with warnings.catch_warnings(action="ignore"):  # the graph knows of no table yet
        graph.output((graph.get_attr("table"),))
    tables = torch.ones(6), torch.ones(6), torch.arange(6.0), torch.ones(6).double()
    graphs = [torch.fx.GraphModule({"table": table}, graph) for table in tables]
    keys = [dynamo_key(gm, [], MaxOptions()) for gm in graphs]
    assert None not in keys
    assert keys[0] == keys[1] and len(set(keys)) == 3


INPUTS = {
    "shape": torch.randn(4, 7),
    "rank": torch.randn(4, 6, 1),
    "dtype": X.double(),
    "strides": torch.randn(6, 4).t(),
    "requires_grad": X.clone().requires_grad_(),
    "parameter": nn.Parameter(X, requires_grad=False),
}


@pytest.mark.parametrize("name", INPUTS)
def test_another_input(name):
    keys = [key_of(lambda x: x * 2, x) for x in (X, INPUTS[name])]
    assert None not in keys and keys[0] != keys[1]


SETTINGS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "AOTAutograd's": lambda: torch._functorch.config.patch(functionalize_rng_ops=True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_another_setting(name):
    def run():
        with SETTINGS[name]():
            return key_of(lambda x: x @ x.t(), X)

    keys = [key_of(lambda x: x @ x.t(), X), run()]
    assert None not in keys and keys[0] != keys[1]


def test_another_default_dtype_determinism_option_or_environment(monkeypatch):
    keys = [key_of(torch.sin, X)]
    torch.set_default_dtype(torch.float64)
    try:
        keys.append(key_of(torch.sin, X))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        keys.append(key_of(torch.sin, X))
    finally:
        torch.use_deterministic_algorithms(False)
    keys.append(key_of(torch.sin, X, options=MaxOptions(attention="composed")))
    assert key_of(torch.sin, X, options=MaxOptions(compile="background")) == keys[0]
    monkeypatch.setattr("torch_max_backend.dynamo_key.environment", lambda: ("another",))
    keys.append(key_of(torch.sin, X))
    assert None not in keys and len(set(keys)) == 5


# ------------------------------------------------------------------------------ where there is none


def test_symbolic_sizes_have_none():
    assert key_of(lambda x: x * 2, X, dynamic=True) is None


def test_a_subclass_of_tensor_has_none():
    class Mine(torch.Tensor):
        pass

    assert key_of(lambda x: x * 2, X.as_subclass(Mine)) is None


@torch.library.custom_op("test_dynamo_key::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@doubled.register_fake
def _(x):
    return torch.empty_like(x)


def test_an_operator_of_the_users_has_none():
    assert key_of(lambda x: torch.ops.test_dynamo_key.doubled(x), X) is None


def test_a_function_under_the_name_of_torchs_has_none(monkeypatch):
    @functools.wraps(torch.nn.functional.softsign)
    def wrapper(x):
        return x * 5

    torch.compiler.allow_in_graph(wrapper)
    assert key_of(lambda x: F.softsign(x), X) is not None
    monkeypatch.setattr(torch.nn.functional, "softsign", wrapper)
    assert key_of(lambda x: torch.nn.functional.softsign(x), X) is None


def test_a_region_with_settings_of_its_own_has_none():
    from torch._higher_order_ops.invoke_subgraph import NestedCompileRegionOptions

    options = NestedCompileRegionOptions(decompositions={torch.ops.aten.relu.default: torch.sin})
    with torch._dynamo.config.patch(enable_invoke_subgraph_regional_compile=True):
        marked = torch.compiler.nested_compile_region(lambda x: x.relu(), options=options)
        assert key_of(lambda x: marked(x), X) is None


def test_under_a_mode_or_a_transform_there_is_none():
    gm = torch.fx.symbolic_trace(lambda: 1)
    assert dynamo_key(gm, [], MaxOptions()) is not None
    with torch.device("cpu"):
        assert dynamo_key(gm, [], MaxOptions()) is None
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        assert dynamo_key(gm, [], MaxOptions()) is None
    seen = []
    torch.func.grad(lambda x: (seen.append(dynamo_key(gm, [], MaxOptions())), x.sum())[1])(X)
    assert seen == [None]


def test_beside_lowerings_of_the_users_there_is_none(monkeypatch):
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    assert key_of(lambda x: x * 2, X) is not None

    @register_lowering(torch.ops.test_dynamo_key.doubled.default)
    def lowered(x):
        return x + x

    assert key_of(lambda x: x * 2, X) is None
