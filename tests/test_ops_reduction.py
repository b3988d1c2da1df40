"""Reductions, cumulative sums and softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

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

DIMS: list[dict[str, Any]] = [
    {},
    {"dim": 0},
    {"dim": -1, "keepdim": True},
    {"dim": (0, 2)},
]
SUMS = {
    "sum": torch.sum,
    "mean": torch.mean,
    "amax": torch.amax,
    "amin": torch.amin,
    "var": torch.var,
    "std": partial(torch.std, correction=0),
    "norm": torch.linalg.vector_norm,
}
WITH_INDEX = {"max": torch.max, "min": torch.min, "argmax": torch.argmax, "argmin": torch.argmin}
SOFTMAX = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}


def name_of(arguments: dict[str, Any]) -> str:
    return "_".join(f"{k}{v}" for k, v in arguments.items()).replace(" ", "") or "all"


def _dims(name: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """The arguments that a reduction is tried with; others have the kernels of these three."""
    if dtype != torch.float32:
        return DIMS[1:2]
    return DIMS if name in ("sum", "var", "amax") else DIMS[2:]


def floating() -> Iterator[Case]:
    for place, dtype in enumerate(FLOATS):
        x = randn(3, 5, 37, dtype=dtype)
        make = partial(Case, scale="tensor", thorough=dtype != torch.float32)
        for name, function in in_turns(SUMS.items(), place):
            for arguments in _dims(name, dtype):
                keys = dict(arguments)
                yield make(
                    f"{name}-{name_of(arguments)}-{short(dtype)}", partial(function, **keys), [x]
                )
        for name, function in in_turns(WITH_INDEX.items(), place):
            yield make(f"{name}-dim1-{short(dtype)}", partial(function, dim=1), [x])
        for name, function in in_turns(SOFTMAX.items(), place):
            for dim in (0, 1, -1) if dtype == torch.float32 and name == "softmax" else (1,):
                yield make(f"{name}-dim{dim}-{short(dtype)}", partial(function, dim=dim), [x * 3])
        others = {
            "prod": lambda x: x.prod(1),
            "cumsum": lambda x: x.cumsum(1),
            "logsumexp": lambda x: x.logsumexp((0, 2)),
            "var_mean": lambda x: torch.var_mean(x, (0, 2)),
            "std_mean": lambda x: torch.std_mean(x, -1),
        }
        for name, function in in_turns(others.items(), place):
            yield make(f"{name}-{short(dtype)}", function, [x])
        if dtype == torch.float64:
            continue
        # 4096 terms: an accumulator in half precision would be off in the second digit
        long = randn(2, 4096, dtype=dtype, seed="long") + 0.25
        yield make(f"sum-long-{short(dtype)}", lambda x: x.sum(-1), [long])
        yield make(f"mean-long-{short(dtype)}", lambda x: x.mean(), [long])
        yield make(f"cumsum-long-{short(dtype)}", lambda x: x.cumsum(-1), [long])
        yield Case(f"softmax-long-{short(dtype)}", lambda x: x.softmax(-1), [long], scale="tensor")
    x = randn(3, 5, 37)
    for kind in ("transposed", "sliced"):
        y = strided(x, kind)
        yield Case(f"sum-{kind}", lambda x: x.sum(1), [y], scale="tensor")
        yield Case(f"softmax-{kind}", lambda x: x.softmax(1), [y], scale="tensor")
        yield Case(f"argmax-{kind}", lambda x: x.argmax(0), [y])
    for name, function in {
        "sum-dtype": lambda x: x.sum(-1, dtype=torch.float32),
        "mean-dtype": lambda x: x.mean(-1, dtype=torch.float32),
        "softmax-dtype": lambda x: x.softmax(-1, dtype=torch.float32),
        "log_softmax-dtype": lambda x: x.log_softmax(-1, dtype=torch.float32),
        "cumsum-dtype": lambda x: x.cumsum(-1, dtype=torch.float32),
        "sum-all": lambda x: x.sum(),
        "max-all": lambda x: x.max(),
        "min-all": lambda x: x.min(),
        "any-all": lambda x: x.any(),
        "all-dims": lambda x: (x > -1).all((0, 2)),
        "any-dim": lambda x: (x > 2).any(1, keepdim=True),
        "argmax-all": lambda x: x.argmax(),
        "argmin-keepdim": lambda x: x.argmin(1, keepdim=True),
        "count_nonzero": lambda x: (x > 0).count_nonzero(),
    }.items():
        dtype = torch.bfloat16 if name.endswith("-dtype") else torch.float32
        y = randn(3, 5, 37, dtype=dtype)
        precise = None
        if name.endswith("-dtype"):
            base = name.removesuffix("-dtype")
            precise = lambda x, base=base: getattr(x, base)(-1)  # noqa: E731
        yield Case(name, function, [y], scale="tensor", reference=precise)


def symbolic() -> Iterator[Case]:
    x, y = randn(3, 5, 37), randn(2, 9, 11)
    for name, function in {
        "sum": lambda x: x.sum(1),
        "mean": lambda x: x.mean((0, 2)),
        "var": lambda x: x.var(-1),
        "var_mean": lambda x: torch.var_mean(x, (0, 2), correction=1),
        "softmax": lambda x: x.softmax(1),
        "argmax": lambda x: x.argmax(-1),
        "argmax-all": lambda x: x.argmax(),
        "max": lambda x: x.max(0),
        "cumsum": lambda x: x.cumsum(2),
        "logsumexp": lambda x: x.logsumexp(1),
        "all": lambda x: (x > -2).all(),
    }.items():
        yield Case(f"{name}-dynamic", function, [x], dynamic=True, others=[[y]], scale="tensor")


def integral() -> Iterator[Case]:
    dtypes = (torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)
    for place, dtype in enumerate(dtypes):  # int64 in full, the others take turns
        make = partial(Case, scale="tensor", thorough=dtype not in (torch.int64, torch.bool))
        x = randn(4, 6, dtype=dtype)
        operations = {
            "sum": lambda x: x.sum(1),
            "sum-all": lambda x: x.sum(),
            "prod": lambda x: x.prod(1),
            "amax": lambda x: x.amax(0),
            "amin": lambda x: x.amin((0, 1)),
            "max-dim": lambda x: x.max(1),
            "any": lambda x: x.any(0),
            "all": lambda x: x.all(1),
            "cumsum": lambda x: x.cumsum(0),
            "softmax-float": lambda x: x.softmax(1, dtype=torch.float32),
            "mean-float": lambda x: x.mean(1, dtype=torch.float32),
        }
        for name, function in in_turns(operations.items(), place):
            yield make(f"{name}-{short(dtype)}", function, [x])
    yield Case("sum-overflow", lambda x: x.sum(dtype=torch.int8), [integers(50, high=9)])


def edges() -> Iterator[Case]:
    nan, inf = math.nan, math.inf
    rows = torch.tensor(
        [
            [1.0, nan, 3.0, nan, 5.0],
            [inf, 1.0, -inf, 2.0, 0.0],
            [inf, inf, 1.0, 2.0, 3.0],
            [-inf, -inf, -inf, -inf, -inf],
            [2.0, 7.0, 7.0, -1.0, 7.0],
            [-0.0, 0.0, -0.0, 0.0, -0.0],
            [-2.0, -7.0, -7.0, -1.0, -7.0],
            [1e18, 1e18, -1e18, 88.0, -88.0],  # squares still fit float32
        ]
    )
    for dtype in (torch.float32, torch.bfloat16):
        x = rows.to(dtype)
        operations = {
            **{k: partial(f, dim=1) for k, f in {**SUMS, **WITH_INDEX, **SOFTMAX}.items()},
            "prod": lambda x: x.prod(1),
            "cumsum": lambda x: x.cumsum(1),
            "logsumexp": lambda x: x.logsumexp(1),
            "any": lambda x: x.any(1),
            "all": lambda x: x.all(1),
            "argmax-all": lambda x: x.argmax(),
        }
        for name, function in operations.items():
            if dtype == torch.float32 or name in ("amax", "argmin", "softmax"):
                nearly = dtype != torch.float32 and name != "argmin"
                case = f"{name}-edge-{short(dtype)}"
                yield Case(case, function, [x], scale="tensor", thorough=nearly)
    empty = randn(3, 0, 4)
    for name, function in {
        "sum": lambda x: x.sum(1),
        "mean": lambda x: x.mean(1),
        "prod": lambda x: x.prod(1),
        "sum-all": lambda x: x.sum(),
        "any": lambda x: x.any(1),
        "all": lambda x: x.all(1),
        "var": lambda x: x.var(1),
        "amax-kept": lambda x: x.amax(0),
        "softmax": lambda x: x.softmax(1),
        "cumsum": lambda x: x.cumsum(1),
        "logsumexp": lambda x: x.logsumexp(1),
        "argmax-kept": lambda x: x.argmax(2),
    }.items():
        nearly = name in ("sum-all", "any", "var", "logsumexp", "cumsum")
        yield Case(f"{name}-empty", function, [empty], thorough=nearly)
    for name, function in {
        "sum": lambda x: x.sum(),
        "mean-dim": lambda x: x.mean(0),
        "max-dim": lambda x: x.max(0),
        "argmax": lambda x: x.argmax(),
        "argmin-dim": lambda x: x.argmin(-1),
        "softmax": lambda x: x.softmax(0),
        "log_softmax": lambda x: x.log_softmax(0),
        "cumsum": lambda x: x.cumsum(0),
        "var-0": lambda x: x.var(correction=0),
        "var-nan": lambda x: x.var(),
        "any": lambda x: x.any(),
        "prod": lambda x: x.prod(),
        "logsumexp": lambda x: x.logsumexp(0),
    }.items():
        nearly = name not in ("sum", "argmax", "max-dim", "softmax", "cumsum", "var-nan")
        yield Case(f"{name}-0d", function, [randn()], thorough=nearly)
    one = randn(4, 1)
    yield Case("var-one", lambda x: x.var(1), [one])
    yield Case("std-one", lambda x: x.std(1, correction=0), [one])


CASES = grouped([*floating(), *symbolic(), *integral(), *edges()], 16)

test_reduction = comparison(CASES)
