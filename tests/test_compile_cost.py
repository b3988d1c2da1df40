"""What MAX would compile kernels for beside the work itself: values of sizes, sums of constants.

MAX folds operations on constants by compiling and running them, ten seconds for the first one.
What it computes by itself, or cannot (a size that only a run tells), costs nothing.
"""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from max.graph import Module
from torch._subclasses import FakeTensorMode

from tests.tracing import trace
from torch_max_backend.graph_builder import build_graph
from torch_max_backend.options import MaxOptions
from vit import ViTConfig

FREE = {
    *["rmo.reshape", "rmo.shape_to_tensor", "rmo.broadcast_to", "rmo.rebind_tensor_shape"],
    *["rmo.concat", "rmo.mo.transpose"],
}
"""Operations that fold without a kernel, or that only name a size."""


def lowered(function, *args, dynamic):
    """The text of the MAX graph of a function, built as AOTAutograd has it built."""
    gm = trace(function, *args, dynamic=dynamic)
    with FakeTensorMode():
        graph, _ = build_graph(gm, Module(), "g0", MaxOptions())
    return str(graph)


def operations(text):
    """(results, name, operands, whether all sizes are known) of each line that has a result."""
    for line in text.splitlines():
        found = re.match(r"\s*(%.+?) = ([\w.]+)(.*?)(?: : (.*)|$)", line)
        if found:
            results, name, rest, types = found.groups()
            kinds = re.findall(r"tensor<\[(.*?)\]", (types or "").split("->")[-1])
            static = not re.search("[a-z]", "".join(kinds))
            yield re.findall(r"%\w+", results), name, re.findall(r"%\w+", rest), static


def folded(text):
    """The operations on constants alone, and the divisions by one: MAX multiplies by 1 / y."""
    constants, found = set(), []
    for results, name, operands, static in operations(text):
        if name == "rmo.div" and operands[1] in constants:
            found.append(name)
        if operands and static and constants.issuperset(operands):
            found += [name] if name not in FREE else []
            constants.update(results)
        elif name == "mo.constant":
            constants.update(results)
    return found


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_vit_has_no_operations_on_constants(dynamic):
    model = ViTConfig(3, (8, 8), (32, 32), 1, 32, 64, 4, dtype=torch.float32).instantiate().eval()
    text = lowered(lambda x: model(x).visual_tokens, torch.randn(2, 3, 48, 32), dynamic=dynamic)
    assert not folded(text)


INDEX = torch.randint(0, 4, (5, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.gather(1, INDEX),
        lambda x: x.flip(0, 1),
        lambda x: x.as_strided((2, 3), (1, 2), 1) + 1,
        lambda x: x.tril() + x.triu(1),
        lambda x: x.diagonal(1) + 1,
        lambda x: x.unfold(0, 3, 2) + 1,
        lambda x: x.slice_scatter(x[:, 1:2], 1, -2, -1),
        lambda x: x.var(0),
        lambda x: x[:, [2, 0]],
        lambda x: x[[0, 2, -1]],
        lambda x: x[[0, -1], [[1], [2]]],
        lambda x: x.index_put((torch.tensor([0, -2]),), x[0]),
        lambda x: x[torch.arange(3), 1],
        lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(6) > 0),
        lambda x: F.scaled_dot_product_attention(
            x.double(), x.double(), x.double(), is_causal=True
        ),
    ],
    ids=[
        *["gather", "flip", "as_strided", "tril", "diagonal", "unfold", "slice_scatter", "var"],
        *["columns", "negative rows", "points", "index_put", "counted rows"],
        *["attention mask", "causal mask"],
    ],
)
def test_static_positions_are_one_constant(function):
    assert not folded(lowered(function, torch.randn(6, 4), dynamic=False))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x**5, x**-1.7, x**2.3, x**math.inf, 2.0**x, 0**x, (-2.0) ** x),
        lambda x: (x / 3, x / -0.1, x / 4, F.hardsigmoid(x), x.log10(), x.var(0), F.softplus(x, 3)),
        lambda x: (x - torch.tensor([0.1, 0.2, 0.3, 0.4])) / torch.tensor([0.5, 0.6, 0.7, 0.8]),
        lambda x: (x % 3, x % -0.5, x.fmod(3), x // 3, x // -0.5, x.div(3, rounding_mode="trunc")),
        lambda x: (x.lerp(x[0], 0.3), x.lerp(x[0], 0.7)),
        lambda x: (x.clamp(-1, 1), x.clamp(max=0), F.hardswish(x), x.clamp(min=math.nan)),
        lambda x: (x.sign(), F.logsigmoid(x)),
        lambda x: (x.long() ** 9, x.long() // 3, x.long() % 3, x.long().sign()),
    ],
    ids=[
        "powers",
        "quotients",
        "normalised colours",
        "remainders",
        "lerp",
        "clamp",
        "signs",
        "integers",
    ],
)
def test_numbers_are_computed_with_while_lowering(function):
    assert not folded(lowered(function, torch.randn(6, 4), dynamic=False))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, -1] + x[-2, 0],
        lambda x: x[:5, 2:50],
        lambda x: F.interpolate(x[None, None], size=(7, 5), mode="bicubic"),
        lambda x: F.interpolate(x[None, None], scale_factor=0.5, mode="bilinear", antialias=True),
        lambda x: x.expand(3, *x.shape)[torch.arange(3), 1],
        lambda x: x.new_ones(x.shape[0] // 2),
    ],
    ids=["from the end", "cut short", "bicubic", "antialias", "counted rows", "a half"],
)
def test_sizes_are_computed_with_where_they_are_symbols(function):
    assert not folded(lowered(function, torch.randn(8, 9), dynamic=True))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[1:, : x.shape[1] - 1],
        lambda x: x[:, 2:5] + x[:, -3:],
        lambda x: x[::2],
        lambda x: x[x.shape[0] - 2 :],
        lambda x: x.split([1, x.shape[0] - 1]),
        lambda x: x.chunk(2, -1),
    ],
    ids=["from one", "negative", "steps", "from a size", "split", "chunk"],
)
def test_slices_by_sizes_need_no_values(function):
    names = [name for _, name, *_ in operations(lowered(function, torch.randn(8, 9), dynamic=True))]
    assert "rmo.slice" in names
    assert "rmo.mo.slice" not in names
