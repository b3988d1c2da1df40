"""Gathers, scatters, advanced indexing, embeddings, sorting."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tests.harness import Case, comparison, grouped, in_turns, integers, randn, short, strided

INDEX = integers(3, 4, low=-5, high=5, seed="index")
ROWS = integers(6, high=5, seed="rows")


def permuted(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Distinct values in random order: sorting has one answer."""
    count = math.prod(shape)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return (order - count // 2).reshape(shape).to(dtype)


RELATED = (
    *("take_along_dim", "index_select_negative_dim", "index_last", "index_two_after", "index_none"),
    *("scatter_value_reduce", "scatter_add_rows"),
)
"""Operations that differ from others in what torch makes of them, not in their kernels."""


def gathers() -> Iterator[Case]:
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.bool)
    for place, dtype in enumerate(dtypes):
        x = randn(5, 7, 6, dtype=dtype)
        around = integers(5, 3, 6, high=7, seed="around")
        operations = [
            ("gather", lambda x, i: x.gather(1, i), x, around),
            ("gather_smaller", lambda x, i: x.gather(1, i[:2, :, :4]), x, around),
            ("take_along_dim", lambda x, i: x.take_along_dim(i, 1), x, around),
            ("index_select", lambda x, i: x.index_select(1, i), x, ROWS),
            ("index_select_negative_dim", lambda x, i: x.index_select(-1, i), x, ROWS),
            ("index_first", lambda x, i: x[i], x, INDEX),
            ("index_middle", lambda x, i: x[:, i], x, INDEX),
            ("index_last", lambda x, i: x[..., i], x, INDEX),
            ("index_two", lambda x, i: x[i, i], x, INDEX),
            ("index_two_apart", lambda x, i: x[i, :, i], x, INDEX),
            ("index_two_after", lambda x, i: x[:, i, i], x, INDEX),
            ("index_broadcast", lambda x, i: x[i, i[:, :1]], x, INDEX),
            ("index_three", lambda x, i: x[i, i, i], x, INDEX),
            ("index_int32", lambda x, i: x[i.int()], x, INDEX),
            ("index_list", lambda x: x[[0, 2, -1]], x),
            ("index_none", lambda x, i: x[None, i, None], x, INDEX),
            ("cls_token", lambda x: x[torch.arange(5), torch.arange(5) % 7], x),
        ]
        for name, function, *inputs in in_turns(operations, place):
            nearly = dtype in (torch.bfloat16, torch.bool) or name in RELATED
            yield Case(f"{name}-{short(dtype)}", function, inputs, exact=True, thorough=nearly)
    for kind in ("transposed", "sliced", "expanded"):
        x = strided(randn(5, 7, 6), kind)
        for name, function, index, here in [
            ("index_middle", lambda x, i: x[:, i], INDEX, "expanded"),
            ("gather", lambda x, i: x.gather(1, i), around, "transposed"),
        ]:
            nearly = kind != here
            yield Case(f"{name}-{kind}", function, [x, index], exact=True, thorough=nearly)
    for dtype in (torch.float32, torch.float16):
        table = randn(11, 6, dtype=dtype)
        tokens = integers(2, 5, high=11)
        yield Case(f"embedding-{short(dtype)}", F.embedding, [tokens, table], exact=True)
        yield Case(
            f"embedding_int32-{short(dtype)}", F.embedding, [tokens.int(), table], exact=True
        )


def scatters() -> Iterator[Case]:
    x, source = randn(5, 7, dtype=torch.bool), randn(5, 7, dtype=torch.bool, seed="source")
    repeated = integers(5, 7, high=3, seed="repeated")
    lanes = randn(5, 7, seed="lanes").argsort(1)
    for name, function, *inputs in [
        ("scatter_add", lambda x, i, s: x.scatter_add(1, i, s), x, repeated, source),
        ("scatter_reduce", lambda x, i, s: x.scatter(1, i, s, reduce="multiply"), x, lanes, source),
        ("index_put_add", lambda x, i: x.index_put((i,), x[0], accumulate=True), x, ROWS),
    ]:
        yield Case(f"{name}-bool", function, inputs)
    for place, dtype in enumerate((torch.float32, torch.bfloat16, torch.int64)):
        x = randn(5, 7, dtype=dtype)
        source = randn(5, 7, dtype=dtype, seed="source")
        lanes = randn(5, 7, seed="lanes").argsort(1)[:, :3]
        repeated = integers(5, 7, high=3, seed="repeated")
        operations = [
            ("scatter", lambda x, i, s: x.scatter(1, i, s), x, lanes, source),
            ("scatter_value", lambda x, i: x.scatter(1, i, 2.0), x, lanes),
            (
                "scatter_reduce",
                lambda x, i, s: x.scatter(1, i, s, reduce="multiply"),
                x,
                lanes,
                source,
            ),
            ("scatter_value_reduce", lambda x, i: x.scatter(1, i, 2.0, reduce="add"), x, repeated),
            ("scatter_add", lambda x, i, s: x.scatter_add(1, i, s), x, repeated, source),
            ("scatter_add_rows", lambda x, i, s: x.scatter_add(0, i, s), x, repeated, source),
            ("index_put", lambda x, i, s: x.index_put((i,), s), x, ROWS[:3], source[:3]),
            (
                "index_put_add",
                lambda x, i, s: x.index_put((i,), s, accumulate=True),
                x,
                ROWS,
                source[:1].expand(6, 7),
            ),
            (
                "index_put_middle",
                lambda x, i, s: _added(x[None], i, s),
                x,
                ROWS,
                source[0],
            ),
            (
                "index_put_two",
                lambda x, i, j: x.index_put((i, j), x[0, 0]),
                x,
                torch.tensor([0, -1, 2]),
                torch.tensor([1, 2, -3]),
            ),
            ("index_add", lambda x, i, s: x.index_add(0, i, s[:1].expand(6, 7)), x, ROWS, source),
            (
                "index_copy",
                lambda x, i, s: x.index_copy(0, i, s[:2]),
                x,
                torch.tensor([3, 1]),
                source,
            ),
            ("index_fill", lambda x, i: x.index_fill(1, i, 4), x, ROWS),
            ("mask_assign", lambda x, s: _assigned(x, s), x, source),
        ]
        for name, function, *inputs in in_turns(operations, place):
            if name == "index_put" and dtype == torch.float32:
                inputs[1] = torch.tensor([4, 0, 2])
            elif name == "index_put":
                inputs[1] = torch.tensor([-1, 0, 2])
            nearly = dtype == torch.bfloat16 or name in RELATED
            yield Case(f"{name}-{short(dtype)}", function, inputs, scale="tensor", thorough=nearly)


def _added(x: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, index] += source
    return y


def _assigned(x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """A mask token, as masked image models place it."""
    return torch.where(source[:, :1] > 0, x, source)


def _masked_assign(x: torch.Tensor, rows: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[rows, 1] = 3.0
    return y


def sorting() -> Iterator[Case]:
    for place, dtype in enumerate((torch.float32, torch.bfloat16, torch.int64)):
        x = permuted(4, 9, 3, dtype=dtype)
        operations = {
            "sort": lambda x: x.sort(1),
            "sort_descending": lambda x: x.sort(0, descending=True),
            "topk": lambda x: x.topk(3, 1),
            "topk_smallest": lambda x: x.topk(2, 1, largest=False),
            "topk_all": lambda x: x.topk(9, 1),
        }
        for name, function in in_turns(operations.items(), place):
            yield Case(f"{name}-{short(dtype)}", function, [x], exact=True)
    ties = torch.tensor([[3.0, 1.0, 3.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0, 5.0]])
    odd = torch.tensor(
        [[math.nan, 1.0, math.inf, -math.inf, 2.0], [0.0, -0.0, 1.0, math.nan, -1.0]]
    )
    rows = torch.tensor([True, False, True, True])
    grid = randn(4, 5, dtype=torch.bool)
    y = randn(4, 5)
    for name, function in {
        "rows_add": lambda x, m, g: x.index_put((m,), x[:3] * 2, accumulate=True),
        "rows": lambda x, m, g: x.index_put((m,), x[0]),
        "grid": lambda x, m, g: x.index_put((g,), torch.tensor(7.0)),
        "assign": _masked_assign,
    }.items():
        yield Case(f"mask-{name}", function, [y, rows, grid])
    yield Case("embedding-0d", lambda x: F.embedding((x[0, 0] > 0).long(), x), [y])
    for name, function in {
        "sort-ties": lambda x: x.sort(dim=1, stable=True),
        "sort_descending-ties": lambda x: x.sort(dim=1, descending=True, stable=True),
    }.items():
        yield Case(name, function, [ties], exact=True)
    yield Case("sort-nan", lambda x: x.sort(dim=1, stable=True), [odd])
    yield Case("topk-nan", lambda x: x.topk(2, 1).values, [odd])
    yield Case("topk-values-ties", lambda x: x.topk(3, 1).values, [ties], exact=True)
    yield Case("sort-0d", lambda x: x.sort(), [randn()], exact=True)
    yield Case("sort-empty", lambda x: x.sort(1), [randn(3, 0)], exact=True)
    yield Case("nonzero-count", lambda x: (x > 0).sum(), [odd])


def symbolic() -> Iterator[Case]:
    x, y = randn(5, 7, 6), randn(6, 9, 5)
    for name, function in {
        "gather": lambda x: x.gather(1, (x[:, :3] > 0).long()),
        "index_middle": lambda x: x[:, torch.arange(3) * 2],
        "index_two": lambda x: x[torch.arange(4), torch.arange(4)],
        "index_positions": lambda x: x[:, torch.arange(x.shape[1]) // 2],
        "index_select": lambda x: x.index_select(1, torch.arange(x.shape[0])),
        "scatter_add": lambda x: x.scatter_add(1, (x > 0).long(), x),
        "index_put": lambda x: x.index_put((torch.arange(2),), x[2:4] * 2),
        "topk": lambda x: x.topk(3, 1),
        "embedding": lambda x: F.embedding((x[0] > 0).long(), x[:, 0]),
    }.items():
        yield Case(f"{name}-dynamic", function, [x], dynamic=True, others=[[y]], scale="tensor")


CASES = grouped([*gathers(), *scatters(), *sorting(), *symbolic()], 10)

test_indexing = comparison(CASES)
