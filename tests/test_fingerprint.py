"""Cache keys: graphs that differ in anything an executable depends on have different keys.

A collision is a wrong result that nothing else would notice, so there is a test per kind.
"""

import importlib.util
import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.fx import Graph, GraphModule

from tests.tracing import trace
from torch_max_backend import MaxOptions, compilation, environment, register_lowering, registry
from torch_max_backend.cpu import cpu_features
from torch_max_backend.digests import sources_digest
from torch_max_backend.environment import program_key
from torch_max_backend.fingerprint import graph_fingerprint

ROOT = Path(__file__).parents[1]


def key(function, *args, dynamic=False, options=None):
    return graph_fingerprint(trace(function, *args, dynamic=dynamic), options or MaxOptions())


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


@pytest.fixture
def table(monkeypatch):
    """The table, restored after the test."""
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))


# ------------------------------------------------------------------------------- the same key


def test_the_same_function_traced_twice():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.LayerNorm(8))
    assert key(model, randn(2, 4)) == key(model, randn(2, 4))


def test_values_and_names_of_parameters_do_not_matter():
    """Weights are inputs: a checkpoint of the same architecture starts from the cache."""

    def make():
        return torch.nn.Linear(4, 8)

    renamed = torch.nn.ModuleDict({"other": make()})
    assert key(make(), randn(2, 4)) == key(make(), randn(2, 4))
    assert key(make(), randn(2, 4)) == key(lambda x: renamed["other"](x), randn(2, 4))


def test_names_of_variables_and_lines_do_not_matter():
    def one(x):
        a = x.sin()
        return a + x

    def other(x):
        sine = x.sin()

        return sine + x

    assert key(one, randn(3)) == key(other, randn(3))


def test_names_of_symbols_do_not_matter():
    """torch names a symbol after the argument it comes from."""
    x = randn(3, 7)
    graphs = [
        trace(lambda x: x.sin() + x.shape[0], x, dynamic=True),
        trace(lambda image: image.sin() + image.shape[0], x, dynamic=True),
    ]
    names = [{str(s) for node in g.graph.nodes for s in _symbols(node)} for g in graphs]
    assert names[0] and names[0] != names[1]
    one, other = (graph_fingerprint(g, MaxOptions()) for g in graphs)
    assert one == other


def _symbols(node):
    value = node.meta.get("val")
    return value.shape if isinstance(value, torch.Tensor) else ()


def test_names_of_nodes_do_not_matter():
    gm = trace(lambda x: x.sin() + x, randn(3))
    before = graph_fingerprint(gm, MaxOptions())
    for i, node in enumerate(gm.graph.nodes):
        node._rename(f"renamed_{100 - i}")
    assert graph_fingerprint(gm, MaxOptions()) == before


def test_another_process_with_another_hash_seed():
    script = (
        "import torch\n"
        "from tests.test_fingerprint import process_key\n"
        "print('KEY', process_key())\n"
    )
    keys = set()
    for seed in ("1", "77"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        keys.add(done.stdout.split("KEY ")[1].split()[0])
    assert len(keys) == 1
    assert keys == {process_key()}


def process_key() -> str:
    """The program key of two graphs with symbols, constants, kwargs and several free symbols."""

    def function(x, y):
        table = torch.tensor([0.5, 1.5, 2.5])
        grid = x.reshape(-1, 3) * table
        return torch.cat([grid, y.expand(grid.shape)]).sum(0, keepdim=True), x.shape[0] * 2

    gm = trace(function, torch.ones(4, 6), torch.ones(3), dynamic=True)
    other = trace(lambda x: torch.nn.functional.gelu(x, approximate="tanh"), torch.ones(5))
    return program_key([graph_fingerprint(g, MaxOptions()) for g in (gm, other)])


# ------------------------------------------------------------------------------ different keys

PAIRS = {
    "operator": (lambda x: x.sin(), lambda x: x.cos()),
    "argument, int": (lambda x: x.sum(0), lambda x: x.sum(1)),
    "argument, list": (lambda x: x.permute(1, 0), lambda x: x.permute(0, 1)),
    "argument, float": (lambda x: x * 0.1, lambda x: x * 0.1000000001),
    "argument, large float": (lambda x: x * 1e300, lambda x: x * 1.0000001e300),
    "argument, sign of zero": (lambda x: x * 0.0, lambda x: x * -0.0),
    "argument, nan": (lambda x: x + float("nan"), lambda x: x + float("inf")),
    "argument, string": (
        lambda x: torch.nn.functional.gelu(x),
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    ),
    "argument, dtype": (lambda x: x.to(torch.float16), lambda x: x.to(torch.bfloat16)),
    "argument, none": (lambda x: x.clamp(0.5, None), lambda x: x.clamp(None, 0.5)),
    "keyword": (lambda x: x.sum(0, keepdim=True)[0], lambda x: x.sum(0, keepdim=False)),
    "int against float": (lambda x: x * 2, lambda x: x * 2.0),
    "int against bool": (lambda x: x + 1, lambda x: x + True),
    "which operand": (lambda x: x.sin() - x, lambda x: x - x.sin()),
    "which earlier node": (lambda x: x.sin().sin() + x, lambda x: x.sin().sin() + x.sin()),
    "order of the outputs": (lambda x: (x.sin(), x.cos()), lambda x: (x.cos(), x.sin())),
    "which output": (lambda x: (x.sin(), x.cos())[0], lambda x: (x.sin(), x.cos())[1]),
    "a repeated output": (lambda x: _twice(x.sin()), lambda x: (x.sin(), x.cos())),
    "strides of an output": (lambda x: x.sin().t(), lambda x: x.sin().t().contiguous()),
    "value of a constant": (
        lambda x: x * torch.tensor([0.25, 0.5, 0.75]),
        lambda x: x * torch.tensor([0.25, 0.5, 0.76]),
    ),
    "dtype of a constant": (
        lambda x: x * torch.tensor([1, 2, 3], dtype=torch.int32),
        lambda x: x * torch.tensor([1, 2, 3], dtype=torch.int64),
    ),
    "shape of a constant": (
        lambda x: x * torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x * torch.tensor([[1.0, 2.0, 3.0]]),
    ),
    "a slice": (lambda x: x[1:], lambda x: x[:1]),
    "a size": (lambda x: x.new_ones(3, 4), lambda x: x.new_ones(4, 3)),
}


def _twice(x):
    return x, x


@pytest.mark.parametrize("kind", PAIRS)
def test_graphs_that_differ_in_one_thing(kind):
    one, other = PAIRS[kind]
    x = randn(3, 3)  # square: shapes do not tell one axis from the other
    assert key(one, x) == key(one, x), "a key that is never the same proves nothing"
    assert key(one, x) != key(other, x)


def test_outputs_that_are_no_tensors():
    gm = trace(lambda x: x.sin(), randn(3))
    (output,) = gm.graph.find_nodes(op="output")
    (sine,) = output.args[0]
    keys = set()
    for results in ((sine,), (sine, None), (None, sine), (sine, 3), (sine, 4), (sine, 3.0)):
        output.args = (results,)
        keys.add(graph_fingerprint(gm, MaxOptions()))
    assert len(keys) == 6


INPUTS = {
    "dtype": (randn(4, 6), randn(4, 6, dtype=torch.float64)),
    "half precision": (randn(4, 6, dtype=torch.float16), randn(4, 6, dtype=torch.bfloat16)),
    "int width": (torch.arange(24), torch.arange(24, dtype=torch.int32)),
    "shape": (randn(4, 6), randn(6, 4)),
    "rank": (randn(24), randn(24, 1)),
    "an axis of one": (randn(4, 1), randn(4, 2)),
    "no element": (randn(0, 3), randn(3, 0)),
    "strides": (randn(4, 6), randn(6, 4).t()),
    "expanded": (randn(4, 6), randn(4, 1).expand(4, 6)),
    "steps": (randn(4, 6), randn(4, 12)[:, ::2]),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_that_differ_in_one_thing(kind):
    one, other = INPUTS[kind]

    def function(x):
        return x * 2

    assert key(function, one) == key(function, one.clone() if one.is_contiguous() else one)
    assert key(function, one) != key(function, other)


def test_static_against_symbolic_sizes():
    def function(x):
        return x * 2

    assert key(function, randn(4, 6)) != key(function, randn(4, 6), dynamic=True)


def test_equal_symbols_against_different_ones():
    """x + y over one symbol needs no broadcast check; over two it is another graph."""
    x, y = randn(4), randn(4)
    z = randn(5)

    def function(x, y):
        return x.sum() + y.sum(), x * 2, y * 2

    same = trace(lambda x, y: (x + y, x * 2, y * 2), x, y, dynamic=True)
    different = trace(function, x, z, dynamic=True)
    symbols = [
        {str(n.meta["val"].shape[0]) for n in g.graph.nodes if n.op == "placeholder" and _ranked(n)}
        for g in (same, different)
    ]
    assert [len(s) for s in symbols] == [1, 2]
    # the same nodes over one symbol or two
    one, two = _relabelled(different, "same"), _relabelled(different, "different")
    assert one != two


def _ranked(node):
    return isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].ndim


def _relabelled(gm, pattern):
    """The key of a hand-made graph y = f(a, b) whose axes are one symbol or two."""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder" and _ranked(n)]
    first, second = (node.meta["val"] for node in placeholders)
    graph = Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    a.meta["val"], b.meta["val"] = first, first if pattern == "same" else second
    out = graph.call_function(torch.ops.aten.sum.default, (a,))
    out.meta["val"] = first.new_empty(())
    graph.output((out,))
    return graph_fingerprint(GraphModule({}, graph), MaxOptions())


def test_expressions_of_symbols():
    x, y = randn(4, 3), randn(5, 3)

    def rows(x, y):
        return torch.cat([x, y, y])

    def others(x, y):
        return torch.cat([x, x, y])

    assert key(rows, x, y, dynamic=True) != key(others, x, y, dynamic=True)


def test_which_symbol_is_an_output():
    x = randn(4, 5)
    assert key(lambda x: (x * 2, x.shape[0]), x, dynamic=True) != key(
        lambda x: (x * 2, x.shape[1]), x, dynamic=True
    )


def test_dynamic_numbers_by_their_type():
    def function(x, n):
        return x * n

    x = randn(3)
    keys = {key(function, x, n, dynamic=True) for n in (3, 2.5)}
    keys.add(key(function, x, True, dynamic=True))
    assert len(keys) == 3


def test_a_negative_number_is_bound_otherwise_than_a_size():
    """A size travels as a dimension, which cannot be negative."""

    def function(x, n):
        return x + n

    def sized(x, n):
        torch._check(n >= 0)
        return x + n

    assert key(function, randn(3), 5, dynamic=True) != key(sized, randn(3), 5, dynamic=True)


def test_options_that_change_the_executable():
    gm = trace(lambda x: x * 2, randn(3))
    base = graph_fingerprint(gm, MaxOptions())
    assert base != graph_fingerprint(gm, MaxOptions(attention="composed"))
    assert base == graph_fingerprint(gm, MaxOptions(compile="background", cache=False))


def test_devices():
    graphs = []
    for device in ("cpu", "meta"):
        graph = Graph()
        a = graph.placeholder("a")
        a.meta["val"] = torch.empty(3, device=device)
        graph.output((a,))
        graphs.append(graph_fingerprint(GraphModule({}, graph), MaxOptions()))
    assert graphs[0] != graphs[1]


def test_values_with_the_same_text():
    """What Python prints alike is not alike: 1 and True, "1" and 1, [1] and (1,) by node."""
    keys = set()
    values = (1, 1.0, True, "1", [1], "float 0x1.0000000000000p+0", "[int 1]", None, "None")
    for value in values:
        graph = Graph()
        a = graph.placeholder("a")
        a.meta["val"] = torch.empty(3)
        out = graph.call_function(torch.ops.aten.add.Scalar, (a, value))
        out.meta["val"] = a.meta["val"]
        graph.output((out,))
        keys.add(graph_fingerprint(GraphModule({}, graph), MaxOptions()))
    assert len(keys) == len(values)


def test_a_string_cannot_imitate_the_structure():
    def written(args):
        graph = Graph()
        a = graph.placeholder("a")
        a.meta["val"] = torch.empty(3)
        graph.output((graph.call_function(operator.getitem, (a, *args)),))
        return graph_fingerprint(GraphModule({}, graph), MaxOptions())

    assert written(["x", "y"]) != written(["x',str 'y"])


# ------------------------------------------------------------------------------------ programs


def test_the_order_of_a_program_counts():
    """MAX's own cache returned swapped graphs here: it knows neither names nor this order."""
    first, second = key(lambda x: x + 1, randn(3)), key(lambda x: x - 1, randn(3))
    assert program_key([first, second]) != program_key([second, first])


def test_two_graphs_whose_names_are_swapped():
    """A module {a: add, b: sub} and one {a: sub, b: add} are two programs."""
    add, sub = (trace(f, randn(3)) for f in (lambda x: x + 1, lambda x: x - 1))
    named = [("a", add), ("b", sub), ("a", sub), ("b", add)]
    options = MaxOptions()
    pending = [
        compilation._Pending(name, gm, graph_fingerprint(gm, options), options)
        for name, gm in named
    ]
    keys = [program_key([p.key for p in pair]) for pair in (pending[:2], pending[2:])]
    assert keys[0] != keys[1]


def test_programs_of_other_lengths():
    one = key(lambda x: x + 1, randn(3))
    assert len({program_key([one]), program_key([one, one]), program_key([])}) == 3


@pytest.mark.parametrize("what", range(5))
def test_the_environment_counts(monkeypatch, what):
    parts = list(environment.environment())
    assert len(parts) >= 5, "torch, max, sources, cpu, accelerators"
    before = program_key(["graph"])
    parts[what] += " changed"
    monkeypatch.setattr(environment, "environment", lambda: tuple(parts))
    assert program_key(["graph"]) != before


def test_the_environment_names_the_releases():
    import importlib.metadata

    text = " ".join(environment.environment())
    assert torch.__version__ in text
    assert importlib.metadata.version("max") in text
    assert cpu_features() and cpu_features() in text


def test_the_sources_count(tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "ops" / "b.mojo").write_text("fn f(): pass\n")
    keys = [sources_digest(tmp_path)]
    (tmp_path / "notes.txt").write_text("no source")
    assert sources_digest(tmp_path) == keys[0]
    (tmp_path / "ops" / "b.mojo").write_text("fn g(): pass\n")
    keys.append(sources_digest(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    keys.append(sources_digest(tmp_path))
    assert len(set(keys)) == 3


# --------------------------------------------------------------------- lowerings of the user's


@pytest.fixture(scope="module")
def turn():
    with torch.library._scoped_library("torch_max_backend_tests", "FRAGMENT") as library:
        library.define("turn(Tensor x) -> Tensor")
        library.impl("turn", lambda x: x * 2, "CompositeExplicitAutograd")
        library.impl("turn", torch.empty_like, "Meta")
        yield torch.ops.torch_max_backend_tests.turn.default


def _module(path: Path, body: str):
    path.write_text(f"def lower(x):\n    return {body}\n")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_the_source_of_a_users_lowering(turn, table, tmp_path, monkeypatch):
    gm = trace(lambda x: turn(x), randn(3))
    keys = [graph_fingerprint(gm, MaxOptions())]
    for i, body in enumerate(["x + x", "x * 2", "x * 2"]):
        module = _module(tmp_path / f"user_lowering_{i}.py", body)
        register_lowering(turn, replace=True)(module.lower)
        keys.append(graph_fingerprint(gm, MaxOptions()))
    assert len(set(keys[:3])) == 3
    assert keys[2] == keys[3], "the same source elsewhere"


def test_a_users_lowering_in_place_of_a_row_of_the_table(table, tmp_path):
    gm = trace(lambda x: x.sin(), randn(3))
    before = graph_fingerprint(gm, MaxOptions())
    path = tmp_path / "user_sine.py"
    path.write_text("def lower(self):\n    return self\n")
    spec = importlib.util.spec_from_file_location("user_sine", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_sine"] = module
    spec.loader.exec_module(module)
    register_lowering(torch.ops.aten.sin.default, replace=True)(module.lower)
    assert graph_fingerprint(gm, MaxOptions()) != before


def test_a_lowering_typed_into_a_shell_is_never_found_again(turn, table):
    """There is no file to compare with, so a cache hit could be an old definition's."""
    scope = {"__name__": "__main__"}
    exec("def lower(x):\n    return x", scope)
    had = getattr(sys.modules["__main__"], "__file__", None)
    try:
        if had is not None:
            del sys.modules["__main__"].__file__
        register_lowering(turn)(scope["lower"])
        gm = trace(lambda x: turn(x), randn(3))
        assert graph_fingerprint(gm, MaxOptions()) != graph_fingerprint(gm, MaxOptions())
    finally:
        if had is not None:
            sys.modules["__main__"].__file__ = had
