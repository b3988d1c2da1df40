"""The names of dynamic sizes, of programs that are traced and not compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from torch_max_backend.aot.symbol_names import renamed, symbol_names
from torch_max_backend.dims import expression

BATCH, ROWS = Dim("batch", min=2, max=8), Dim("rows", min=2, max=9)


class Sum(nn.Module):
    def forward(self, x: Tensor, *more: Tensor, pair: Any = None, factor: int = 1) -> Tensor:
        terms = [x, *more, *([] if pair is None else [pair["a"], pair["b"][0]])]
        return torch.cat([term.sum().reshape(1) for term in terms]) * factor


def names(args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> dict[str, str]:
    model = Sum()
    program = export(model, args, kwargs, dynamic_shapes=shapes)
    return symbol_names(program, model.forward, args, kwargs, shapes)


def values(found: dict[str, str]) -> list[str]:
    return sorted(found.values())


X, Y = torch.randn(4, 3), torch.randn(5, 6)


def test_by_position():
    assert values(names((X,), {}, ({0: BATCH},))) == ["batch"]
    assert values(names((X,), {}, ((BATCH, None),))) == ["batch"]
    assert values(names((X,), {}, {"x": {0: BATCH, 1: None}})) == ["batch"]
    assert values(names((X,), {}, {})) == []


def test_nested_and_by_keyword_in_any_order():
    pair = {"a": Y, "b": [torch.randn(7, 2)]}
    shapes = {
        "x": {0: BATCH},
        "factor": None,
        "pair": {"a": None, "b": [{0: ROWS}]},
    }
    for kwargs in ({"pair": pair, "factor": 2}, {"factor": 2, "pair": pair}):
        assert values(names((X,), kwargs, shapes)) == ["batch", "rows"]


def test_further_positional_arguments():
    assert values(names((X, Y), {}, {"x": None, "more": ({1: ROWS},)})) == ["rows"]


def test_sizes_without_a_name_keep_torchs():
    found = names((X, Y), {}, {"x": {0: Dim.AUTO}, "more": ({0: Dim.DYNAMIC},)})
    assert found == {}


def test_an_expression_is_renamed():
    class Twice(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, y])

    args = (torch.randn(4), torch.randn(8))
    shapes = ({0: BATCH}, {0: 2 * BATCH})
    program = export(Twice(), args, dynamic_shapes=shapes)
    found = symbol_names(program, Twice().forward, args, {}, shapes)
    assert values(found) == ["batch"]
    (output,) = program.graph.output_node().args[0]  # type: ignore[misc]
    assert str(renamed(expression(output.meta["val"].shape[0]), found)) == "3*batch"


@pytest.mark.parametrize("size", [3, 0])
def test_a_number_stays(size: int):
    assert renamed(expression(size), {"s6": "batch"}) == size
