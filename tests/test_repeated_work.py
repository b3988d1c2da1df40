"""That graphs of ViTs compute nothing twice and nothing in vain, which is why no pass looks for it.

Views may occur twice: they move nothing. No compile.
"""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from benchmarks.cases import DTYPES, Case, in_precision, make_input, make_model
from tests.tracing import trace

MODELS = ("vit-ti", "vit-ti-classifier", "rotary-vit-s", "swiglu-vit-s", "torch-vit-s")
OF_TRANSFORMERS = ("transformers-vit-s", "transformers-vit-s-classifier", "written-attention")
CAST = torch.ops.aten._to_copy.default


def wasted_work(gm: GraphModule) -> list[str]:
    """The nodes that compute what another one does, what nothing reads, or cast a cast."""
    found = []
    same: dict[Node, Node] = {}
    seen: dict[str, Node] = {}
    for node in gm.graph.nodes:
        if node.op != "call_function" or node.is_impure():
            continue
        arguments = map_arg((node.args, node.kwargs), lambda n: same.get(n, n))
        same[node] = seen.setdefault(repr((node.target, arguments)), node)
        if same[node] is not node and not getattr(node.target, "is_view", True):
            found.append(f"{node.name} repeats {same[node].name}")
        if not node.users:
            found.append(f"nothing reads {node.name}")
        if node.target is CAST and node.args[0].target is CAST:
            found.append(f"{node.name} casts {node.args[0].name}")
    return found


def test_it_is_found_where_there_is():
    x = torch.randn(3)
    repeated = trace(lambda x: (x + 1).exp() * (x + 1).exp().flatten(), x)
    assert wasted_work(repeated) == ["add_1 repeats add", "exp_1 repeats exp"]
    cast_twice = trace(lambda x: x.to(torch.bfloat16).to(torch.float64), x)
    assert wasted_work(cast_twice) == ["_to_copy_1 casts _to_copy"]
    cast_twice.graph.output_node().args = ((),)
    assert "nothing reads _to_copy_1" in wasted_work(cast_twice)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS + OF_TRANSFORMERS)
def test_a_vit_has_none(name, dtype):
    if name in OF_TRANSFORMERS:
        pytest.importorskip("transformers")
    case = Case(name, 2, 32, dtype)
    gm = trace(in_precision(make_model(case), case), make_input(case).to(DTYPES[dtype]))
    assert not wasted_work(gm)
