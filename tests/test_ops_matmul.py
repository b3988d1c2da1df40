"""Matrix products of every rank and layout, linear layers, einsum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import (
    FLOATS,
    Case,
    comparison,
    grouped,
    in_turns,
    integers,
    randn,
    short,
    strided,
)


def products() -> Iterator[Case]:
    for place, dtype in enumerate(FLOATS):
        a, b = randn(5, 24, dtype=dtype), randn(24, 7, dtype=dtype)
        batch, wide = randn(3, 5, 24, dtype=dtype), randn(3, 24, 7, dtype=dtype)
        weight, bias = randn(7, 24, dtype=dtype), randn(7, dtype=dtype)
        operations = [
            ("mm", torch.mm, a, b),
            ("bmm", torch.bmm, batch, wide),
            ("linear", F.linear, batch, weight, bias),
            ("linear_no_bias", F.linear, a, weight),
            ("linear_vector", F.linear, a[0], weight, bias),
            ("linear_4d", lambda x, w, b: F.linear(x[None], w, b), batch, weight, bias),
            ("matmul_broadcast", torch.matmul, batch, b),
            ("matmul_transposed", lambda x, w: x @ w.mT, batch, weight),
            ("mv", torch.mv, a, b[:, 0]),
            ("addmm", lambda x, y, z: torch.addmm(x, y, z, beta=0.5, alpha=2), bias, a, b),
        ]
        for name, function, *inputs in in_turns(operations, place):
            yield Case(f"{name}-{short(dtype)}", function, inputs, scale="tensor")
    a, b = randn(5, 24), randn(24, 7)
    batch = randn(3, 5, 24)
    for name, function, *inputs in [
        ("dot", torch.dot, a[0], a[1]),
        ("vecmat", torch.matmul, a[0], b),
        ("matmul_5d", torch.matmul, randn(2, 1, 3, 5, 8), randn(4, 1, 8, 6)),
        ("matmul_left_vector", torch.matmul, randn(8), randn(2, 3, 8, 6)),
        ("matmul_right_vector", torch.matmul, randn(2, 3, 6, 8), randn(8)),
        ("outer", torch.outer, a[0], b[0]),
        ("addmm_beta0", lambda x, y, z: torch.addmm(x, y, z, beta=0), randn(7) / 0.0, a, b),
        ("addmm_matrix", torch.addmm, randn(5, 7), a, b),
        ("addmv", torch.addmv, randn(5), a, b[:, 0]),
        (
            "baddbmm",
            lambda x, y, z: torch.baddbmm(x, y, z, beta=2, alpha=0.5),
            randn(3, 5, 7),
            batch,
            randn(3, 24, 7),
        ),
        (
            "einsum_scores",
            lambda q, k: torch.einsum("bhld,bhsd->bhls", q, k),
            randn(2, 3, 5, 8),
            randn(2, 3, 6, 8),
        ),
        ("einsum_contract", lambda x, w: torch.einsum("bij,kij->bk", x, w), batch, randn(7, 5, 24)),
        ("einsum_outer", lambda p, f: torch.einsum("n,d->nd", p, f), randn(5), randn(6)),
        (
            "einsum_rel_pos",
            lambda q, r: torch.einsum("bhwc,hkc->bhwk", q, r),
            randn(2, 3, 4, 8),
            randn(3, 5, 8),
        ),
        ("cosine_similarity", F.cosine_similarity, a, randn(5, 24, seed="other")),
        ("tensordot", lambda x, y: torch.tensordot(x, y, 1), batch, b),
        (
            "mlp",
            lambda x, w, v: F.linear(F.gelu(F.linear(x, w)), v),
            a,
            randn(32, 24),
            randn(24, 32),
        ),
        (
            "qkv",
            lambda x, w: F.linear(x, w).view(3, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0),
            batch,
            randn(24, 24),
        ),
        ("mm_large", torch.mm, randn(70, 300), randn(300, 65)),
        ("linear_one_column", F.linear, a, randn(1, 24), randn(1)),  # a part of a vector register
        ("linear_one_column_even", F.linear, randn(5, 32), randn(1, 32), randn(1)),
        ("linear_one_row", F.linear, randn(1, 300), randn(65, 300), randn(65)),
    ]:
        yield Case(name, function, inputs, scale="tensor")
    for kind in ("transposed", "sliced"):
        for name, function in {"mm": torch.mm, "linear": lambda x, w: F.linear(x, w.t())}.items():
            inputs = [strided(a, kind), strided(b, kind)]
            yield Case(f"{name}-{kind}", function, inputs, scale="tensor")
    for dtype in (torch.int64, torch.int32):
        inputs = [randn(3, 4, dtype=dtype), randn(4, 5, dtype=dtype)]
        yield Case(f"mm-{short(dtype)}", torch.mm, inputs)
        batched = [randn(2, 3, 4, dtype=dtype), randn(2, 4, 5, dtype=dtype)]
        yield Case(f"bmm-{short(dtype)}", torch.bmm, batched)


bytes_ = partial(integers, low=-128, high=128, dtype=torch.int8)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As torchao quantises activations."""
    least, most = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    least, most = (
        f(y, torch.zeros_like(y)) for f, y in ((torch.minimum, least), (torch.maximum, most))
    )
    scale = torch.maximum(-least, most) / 127.5
    zero = torch.zeros_like(scale).to(torch.int8)
    scale = scale.clamp(min=torch.finfo(torch.float32).eps).float()
    return torch.clamp((x * scale.reciprocal()).round() + zero, -128, 127).to(torch.int8), scale


def quantised() -> Iterator[Case]:
    def unsigned_shift(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """As torchao writes a product of int8 on a processor."""
        shifted = (a.to(torch.int32) + 128).to(torch.uint8)
        return torch._int_mm(shifted, b).sub_(b.sum(0, keepdim=True, dtype=torch.int32) * 128)

    def scaled(a: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return unsigned_shift(a, w.t()).float() * scale[:, None] + 1

    # depths around a unit of four and a block of 2048; rows around a tile of 6 and a block of 96
    for m, k, n in [
        (1, 1, 1),
        (5, 3, 7),
        (6, 24, 64),
        (13, 70, 65),
        (100, 130, 140),
        (7, 2100, 33),
    ]:
        a, b, w = (bytes_(*shape, seed=str(m)) for shape in [(m, k), (k, n), (n, k)])
        yield Case(f"int_mm-{m}x{k}x{n}", torch._int_mm, [a, b])
        yield Case(f"int_mm_turned-{m}x{k}x{n}", lambda x, y: torch._int_mm(x, y.t()), [a, w])
        yield Case(f"int_mm_shifted-{m}x{k}x{n}", scaled, [a, w, randn(m)])
    lowest = [torch.full((9, 40), -128, dtype=torch.int8) for _ in range(2)]
    yield Case("int_mm_lowest", lambda x, y: torch._int_mm(x, y.t()), lowest)
    sliced = [strided(bytes_(5, 12), "sliced"), strided(bytes_(12, 7), "sliced")]
    yield Case("int_mm_strided", torch._int_mm, sliced)
    rows = torch.cat([randn(5, 37) * 10.0 ** integers(5, 1, low=-9, high=9), torch.zeros(1, 37)])
    for name, x in {"2d": rows, "3d": randn(2, 3, 64), "column": rows[:, :1]}.items():
        for dtype in (torch.float32, torch.bfloat16):
            yield Case(f"quantize_rows-{name}-{short(dtype)}", quantize_rows, [x.to(dtype)])
    for approximate in ("none", "tanh"):
        yield Case(
            f"quantize_rows-gelu-{approximate}",
            lambda x, a=approximate: quantize_rows(F.gelu(x, approximate=a)),
            [randn(5, 37, scale=3)],
        )
    for m, k, n in [(0, 4, 5), (3, 0, 5), (3, 4, 0)]:
        yield Case(f"int_mm_empty-{m}x{k}x{n}", torch._int_mm, [bytes_(m, k), bytes_(k, n)])
    unsigned = integers(7, 20, high=256, dtype=torch.uint8)
    yield Case("int_mm-uint8", torch._int_mm, [unsigned, bytes_(20, 5)])
    yield Case("mm-int8", torch.mm, [bytes_(5, 20), bytes_(20, 6)])


def edges() -> Iterator[Case]:
    for name, left, right in [
        ("rows", (0, 4), (4, 5)),
        ("contraction", (3, 0), (0, 5)),
        ("columns", (3, 4), (4, 0)),
        ("batch", (0, 3, 4), (4, 5)),
    ]:
        yield Case(f"matmul-empty-{name}", torch.matmul, [randn(*left), randn(*right)])
    for dtype in (torch.float32, torch.bfloat16):
        for name, m, k in [("rows", 0, 4), ("contraction", 3, 0)]:
            inputs = [randn(m, k, dtype=dtype), randn(5, k, dtype=dtype), randn(5, dtype=dtype)]
            yield Case(f"linear-empty-{name}-{short(dtype)}", F.linear, inputs)
    odd = randn(3, 4)
    odd[0, 0], odd[1, 1] = float("nan"), float("inf")
    yield Case("mm-nan", torch.mm, [odd, randn(4, 5)], scale="tensor")
    halves = [randn(70, 1, dtype=torch.bfloat16), randn(40, 1, dtype=torch.bfloat16, seed="b")]
    yield Case("linear-rounded", F.linear, halves, exact=True)  # products, with many ties
    one = [randn(1, 1), randn(1, 1, seed="b")]
    yield Case("mm-one", torch.mm, one, scale="tensor")


def symbolic() -> Iterator[Case]:
    for name, function, inputs, others in [
        (
            "linear",
            F.linear,
            [randn(3, 5, 24), randn(7, 24), randn(7)],
            [randn(2, 9, 24), randn(7, 24), randn(7)],
        ),
        ("mm", torch.mm, [randn(5, 24), randn(24, 7)], [randn(6, 11), randn(11, 9)]),
        ("bmm", torch.bmm, [randn(3, 5, 8), randn(3, 8, 6)], [randn(2, 9, 4), randn(2, 4, 7)]),
        (
            "matmul",
            torch.matmul,
            [randn(2, 3, 5, 8), randn(8, 6)],
            [randn(4, 2, 7, 9), randn(9, 3)],
        ),
        ("scores", lambda q: q @ q.mT, [randn(2, 3, 5, 8)], [randn(3, 4, 7, 8)]),
    ]:
        for dtype in (torch.float32, torch.bfloat16)[: 1 + (name in ("linear", "bmm"))]:
            yield Case(
                f"{name}-dynamic-{short(dtype)}",
                function,
                [x.to(dtype) for x in inputs],
                dynamic=True,
                others=[[x.to(dtype) for x in others]],
                scale="tensor",
            )
    yield Case(  # thirds of two sizes, whose symbols torch compares but does not replace
        "linear-thirds-generic",
        lambda x, w, b: F.linear(x, w.chunk(3)[0], b.chunk(3)[0]),
        [randn(5, 24), randn(9, 24), randn(9)],
        dynamic="generic",
        others=[[randn(7, 24), randn(12, 24), randn(12)]],
        scale="tensor",
    )
    yield Case(
        "columns-generic",
        lambda x, y: x @ y.mT,
        [randn(5, 24), randn(3, 24)],
        dynamic="generic",
        others=[[randn(2, 24), randn(1, 24)], [randn(1, 9), randn(4, 9)]],
        scale="tensor",
    )


def linear_kernel() -> Iterator[Case]:
    """Few rows, rows that leave a part of a tile, rows that two workers share, rows of four tasks,
    the last of which is shorter; columns that leave a part of a panel; an inner axis that is odd or
    longer than a block; with and without an activation."""
    activations = {
        "": lambda x: x,
        "_gelu": F.gelu,
        "_gelu_tanh": partial(F.gelu, approximate="tanh"),
        "_silu": F.silu,
        "_quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "_squared_relu": lambda x: F.relu(x) ** 2,
    }
    rows = (1, 2, 5, 6, 7, 97, 200, 391, 1600)
    for (name, activation), dtype in itertools.product(
        activations.items(), (torch.float32, torch.bfloat16)
    ):
        # the last, in float32, is too large to be in a cache for all workers
        for k, n in ((37, 70), (1101, 131), (605, 310))[: 2 if name else 3]:
            weight = nn.Parameter(randn(n, k, dtype=dtype) / k**0.5, requires_grad=False)
            bias = nn.Parameter(randn(n, dtype=dtype), requires_grad=False)

            def function(x, w, b, activation=activation):
                return activation(F.linear(x, w, b))

            yield Case(
                f"linear{name}-{k}x{n}-{short(dtype)}",
                function,
                [randn(50, k, dtype=dtype), weight, bias],
                dynamic="generic",
                others=[[randn(m, k, dtype=dtype), weight, bias] for m in rows],
                scale="tensor",
                thorough=name not in ("", "_gelu") and k == 1101,
            )
    for dtype in (torch.float32, torch.bfloat16):  # each number as near as eager's
        columns = torch.linspace(-6, 6, 1001)[:, None].to(dtype)
        rows_of_one = torch.tensor([1.0, -0.61, 0.087])[:, None].to(dtype)
        yield Case(
            f"linear_gelu-range-{short(dtype)}",
            lambda x, w, b: F.gelu(F.linear(x, w, b)),
            [rows_of_one, columns, torch.zeros(1001, dtype=dtype)],
        )
    for name, activation in list(activations.items())[1:]:
        extremes = torch.tensor([0.0, 1e-30, 0.5, 3.0, 9.0, 13.0, 30.0, 1e30, math.nan, math.inf])
        if name == "_gelu":  # eager's gelu of infinity depends on its place in the tensor
            extremes = extremes[:-1]
        inputs = torch.cat([extremes, -extremes])[:, None]
        yield Case(
            f"linear{name}-extremes",
            lambda x, w, b, activation=activation: activation(F.linear(x, w, b)),
            [inputs, torch.ones(1, 1), torch.zeros(1)],
            scale="tensor",
        )


def gated() -> Iterator[Case]:
    """Gated linear units, see passes/gated_linear.py: rows that leave a part of a tile or that
    workers share, one panel and several, an inner axis that is odd or longer than a block."""

    def silu_last(x, w, b):
        gated, gates = F.linear(x, w, b).chunk(2, -1)
        return gated * F.silu(gates)

    def gelu_first(x, w, b):
        gates, gated = F.linear(x, w, b).chunk(2, -1)
        return F.gelu(gates) * gated

    for dtype in (torch.float32, torch.bfloat16):
        for function, k, n in ((silu_last, 1101, 64), (gelu_first, 37, 192)):
            weight = nn.Parameter(randn(2 * n, k, dtype=dtype) / k**0.5, requires_grad=False)
            bias = nn.Parameter(randn(2 * n, dtype=dtype), requires_grad=False)
            yield Case(
                f"{function.__name__}-{k}x{n}-{short(dtype)}",
                function,
                [randn(50, k, dtype=dtype), weight, bias],
                dynamic="generic",
                others=[[randn(m, k, dtype=dtype), weight, bias] for m in (1, 6, 97, 391, 1600)],
                scale="tensor",
            )


CASES = grouped([*products(), *quantised(), *edges(), *symbolic(), *linear_kernel(), *gated()], 8)

test_matmul = comparison(CASES)
