"""Element-wise operators: dtypes, layouts, symbolic sizes, promotion, edge values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.harness import (
    FLOATS,
    INTS,
    Case,
    comparison,
    grouped,
    randn,
    short,
    strided,
    uniform,
)

UNARY = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "elu": partial(F.elu, alpha=0.7),
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "floor": torch.floor,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": partial(F.hardtanh, min_val=-0.5, max_val=0.75),
    "isfinite": torch.isfinite,
    "isinf": torch.isinf,
    "isnan": torch.isnan,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "logical_not": torch.logical_not,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "neg": torch.neg,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "reciprocal": torch.reciprocal,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": partial(F.softplus, beta=1.5, threshold=3.0),
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "trunc": torch.trunc,
}
POSITIVE = {
    "log": torch.log,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "log2": torch.log2,
    "pow_half": lambda x: x**0.5,
    "pow_real": lambda x: x**2.3,
    "pow_negative": lambda x: x**-1.7,
    "rsqrt": torch.rsqrt,
    "sqrt": torch.sqrt,
}
UNIT = {"acos": torch.acos, "atanh": torch.atanh, "log1p_unit": torch.log1p}
POWERS = {f"pow_{n}": partial(lambda n, x: x**n, n) for n in (-2, -1, 0, 1, 2, 3, 4, 5)}
BINARY = {
    "add": torch.add,
    "add_alpha": partial(torch.add, alpha=3),
    "div": torch.div,
    "div_floor": partial(torch.div, rounding_mode="floor"),
    "div_trunc": partial(torch.div, rounding_mode="trunc"),
    "eq": torch.eq,
    "floor_divide": torch.floor_divide,
    "fmod": torch.fmod,
    "ge": torch.ge,
    "gt": torch.gt,
    "le": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "lt": torch.lt,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": torch.mul,
    "ne": torch.ne,
    "remainder": torch.remainder,
    "rsub": torch.rsub,
    "sub": torch.sub,
    "sub_alpha": partial(torch.sub, alpha=2),
}
INTEGER_UNARY = [
    *["abs", "ceil", "cos", "exp", "floor", "isfinite", "isinf", "isnan", "logical_not", "neg"],
    *["relu", "round", "sigmoid", "sign", "square", "tanh", "trunc", "reciprocal"],
]
BOOLEAN_BINARY = [
    *["add", "mul", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"],
    *["logical_xor", "maximum", "minimum", "div"],
]
OWN_FORMS = [
    *POSITIVE,
    *["acos", "atanh", "elu", "erf", "exp", "exp2", "expm1", "gelu", "gelu_tanh", "pow"],
    *["sigmoid", "softplus", "tanh"],
]
"""Ops whose float64 is not computed as float32 is."""
WITH_EDGES = {*UNARY, *POSITIVE, *UNIT, *POWERS, *BINARY, "pow"}
"""Ops that edges tries on ordinary numbers too."""
# Layouts and broadcasts are not the kernels' concern: some ops stand for all.
LAYOUT_OPS = ["abs", "gelu", "isnan", "silu", "tanh", "add", "div", "eq", "maximum", "sub_alpha"]
GRAPH = 20  # cases that share a graph: fewer cost more graphs, more are fused into huge kernels

# Every kernel costs half a second of compile time, so dtypes, symbolic sizes and layouts vary
# together: an op is tried in float32, in float64 where it is computed otherwise there (of
# WITH_EDGES both are in edges), and the other variants take turns, mostly with --thorough: half
# precision is float32 rounded. OpInfo's samples (test_ops_opinfo.py, most of them with --thorough)
# add bfloat16 and integers.
VARIANTS = [
    (torch.float32, False, "contiguous", lambda i, name: name not in WITH_EDGES),
    (torch.float64, False, "contiguous", lambda i, name: i % 4 == 0 and name not in OWN_FORMS),
    (torch.bfloat16, False, "contiguous", lambda i, name: i % 4 == 1),
    (torch.float16, False, "contiguous", lambda i, name: i % 4 == 3),
    (torch.float32, True, "transposed", lambda i, name: i % 5 == 0),
    (torch.float32, False, "sliced", lambda i, name: name in LAYOUT_OPS),
    (torch.bfloat16, True, "expanded", lambda i, name: name in LAYOUT_OPS),
]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    return x if layout == "contiguous" else strided(x, layout)


def floating() -> Iterator[Case]:
    for dtype, dynamic, layout, chosen in VARIANTS:
        variant = f"{short(dtype)}-{layout}" + ("-dynamic" if dynamic else "")
        for i, (name, function, *inputs) in enumerate(operations(dtype, layout)):
            plain = name.removesuffix("-broadcast")
            if chosen(i, name) and (plain == name or plain in LAYOUT_OPS):
                yield Case(
                    f"{name}-{variant}",
                    function,
                    inputs,
                    dynamic=dynamic,
                    reference=_gelu_tanh if name == "gelu_tanh" else None,
                    thorough=dtype != torch.float32,
                )


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """(1 + tanh u) / 2 as sigmoid(2 u): PyTorch's own form cancels where u is negative."""
    return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))


def operations(dtype: torch.dtype, layout: str) -> Iterator[tuple[Any, ...]]:
    base = laid_out(randn(6, 35, dtype=dtype, scale=2.0), layout)
    # away from the poles of tan and of 1 / x, where every rounding of x counts
    positive = laid_out(uniform(6, 35, low=0.05, high=9.0, dtype=dtype), layout)
    unit = laid_out(uniform(6, 35, low=-0.9, high=0.9, dtype=dtype), layout)
    other = laid_out(randn(6, 35, dtype=dtype, seed="other"), layout)
    row = randn(35, dtype=dtype, seed="row")
    for name, function in {**UNARY, **POWERS}.items():
        yield name, function, base
    for name, function in POSITIVE.items():
        yield name, function, positive
    for name, function in UNIT.items():
        yield name, function, unit
    for name, function in BINARY.items():
        yield name, function, base, other
        yield f"{name}-broadcast", function, base, row
    yield "pow", torch.pow, positive, unit
    yield "lerp", torch.lerp, base, other, unit
    yield "lerp_scalar", lambda x, y: torch.lerp(x, y, 0.3), base, other
    yield "clamp", lambda x: torch.clamp(x, -0.5, 1.25), base
    yield "clamp_min", lambda x: torch.clamp(x, min=0.25), base
    yield "clamp_max", lambda x: torch.clamp(x, max=0.25), base
    yield "clamp_tensor", torch.clamp, base, unit, row
    yield "where", lambda x, y: torch.where(x > 0, x, y), base, other
    yield "masked_fill", lambda x, y: x.masked_fill(y > 0, -7.5), base, other
    value = torch.tensor(2.5, dtype=dtype)
    yield "masked_fill_tensor", lambda x, y, v: x.masked_fill(y > 0, v), base, other, value


def integral() -> Iterator[Case]:
    for place, dtype in enumerate(INTS):  # int64 in full, the others take turns
        for i, (name, function, *inputs) in enumerate(integer_operations(dtype)):
            wraps = name.startswith(("overflow", "pow")) and dtype in (torch.int8, torch.uint8)
            if place == 0 or wraps or (i + place) % 6 == 0:
                nearly = not (place == 0 or wraps)
                yield Case(f"{name}-{short(dtype)}", function, inputs, thorough=nearly)


def integer_operations(dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    x = randn(6, 7, dtype=dtype)
    y = randn(6, 7, dtype=dtype, seed="divisor")
    for name in INTEGER_UNARY:
        yield name, UNARY[name], x
    for name, function in BINARY.items():
        yield name, function, x, y
    small = (y.abs() % 4 if dtype != torch.uint8 else y % 4).to(dtype)
    yield "pow", torch.pow, x, small
    yield "pow_2", lambda x: x**2, x
    yield "pow_5", lambda x: x**5, x
    yield "pow_9", lambda x: x**9, x
    for divisor in (3, -4) if dtype.is_signed else (3,):
        yield f"div_floor_{divisor}", partial(lambda n, x: x // n, divisor), x
        yield f"div_trunc_{divisor}", partial(_div_trunc, divisor), x
        yield f"remainder_{divisor}", partial(lambda n, x: x % n, divisor), x
    yield "pow_half", lambda x: x.abs() ** 0.5, x
    yield "clamp", lambda x: x.clamp(2, 5), x
    yield "add_float", lambda x: x + 0.5, x
    info = torch.iinfo(dtype)
    extremes = torch.tensor([info.min, info.max, 1, info.max - 1, 3], dtype=dtype)
    yield "overflow_add", lambda x: x + x, extremes
    yield "overflow_mul", lambda x: x * x, extremes
    yield "overflow_neg", torch.neg, extremes
    yield "overflow_rsub", lambda x: 0 - x, extremes
    yield "overflow_abs", torch.abs, extremes


def _div_trunc(divisor: int, x: torch.Tensor) -> torch.Tensor:
    return x.div(divisor, rounding_mode="trunc")


def boolean() -> Iterator[Case]:
    x, y = randn(6, 7, dtype=torch.bool), randn(6, 7, dtype=torch.bool, seed="y")
    for name in BOOLEAN_BINARY:
        yield Case(f"{name}-bool", BINARY[name], [x, y])
    for name, function in {
        "and": lambda x, y: x & y,
        "or": lambda x, y: x | y,
        "xor": lambda x, y: x ^ y,
        "not": lambda x, y: ~x,
        "where": lambda x, y: torch.where(x, 2.5, y),
        "masked_fill": lambda x, y: x.masked_fill(y, True),
    }.items():
        yield Case(f"{name}-bool", function, [x, y])
    for name in ("logical_not", "isnan", "sigmoid", "exp", "sign"):
        yield Case(f"{name}-bool", UNARY[name], [x])


def positive_or_half(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0.5)


def promoted() -> Iterator[Case]:
    """Pairs of dtypes; test_promotion.py has all of them without a compile."""
    kinds = [torch.bool, torch.uint8, torch.int32, torch.int64, *FLOATS]
    binary = [("add", torch.add), ("mul", torch.mul), ("lt", torch.lt)]
    for i, a in enumerate(kinds):
        x = randn(5, 3, dtype=a)
        for j, b in enumerate(kinds[:i]):
            if (i + j) % 2:
                continue
            name, function = binary[(i + j) % 3]
            zero_rank = (i + 2 * j) % 4 == 0
            y = randn(dtype=b, seed="b") if zero_rank else randn(5, 3, dtype=b, seed="b")
            case = f"{name}-{short(a)}-{'0d_' if zero_rank else ''}{short(b)}"
            yield Case(case, function, [x, y], thorough=(i + j) % 4 == 2)
        name, number = [("int", 3), ("float", 2.5), ("bool", True)][i % 3]
        yield Case(f"mul-{short(a)}-{name}", lambda x, n=number: x * n, [x])
        yield Case(f"where-{short(a)}-float", positive_or_half, [x], thorough=i % 3 > 0)


SPECIAL = torch.tensor(
    [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5]
    + [1e30, -1e30, 3.0, -3.0, 1e-30, -1e-30, 65.0, -65.0, 88.5, 128.0, -120.0]
)
# sin of 1e30 is a matter of how many digits of pi are known; gelu of infinity is NaN in PyTorch's
# float32 and infinity in its float64
LEFT_OUT = {"sin": [1e30, -1e30], "cos": [1e30, -1e30], "tan": [1e30, -1e30], "gelu": [math.inf]}
LEFT, RIGHT = torch.meshgrid(SPECIAL, SPECIAL, indexing="ij")
MODERATE = SPECIAL[~torch.isin(SPECIAL.abs(), torch.tensor([1e30, 1e-30]))]
MODERATE_LEFT, MODERATE_RIGHT = torch.meshgrid(MODERATE, MODERATE, indexing="ij")


def edges() -> Iterator[Case]:
    unary = {**UNARY, **POSITIVE, **UNIT, **POWERS, "clamp": lambda x: x.clamp(-1, 1)}
    unary["to_bool"] = lambda x: x.bool()
    for i, (name, function) in enumerate(unary.items()):
        for dtype in (torch.float32, torch.float64, torch.float16):
            if dtype == torch.float64 and name not in OWN_FORMS:
                continue
            if dtype == torch.float16 and i % 6:
                continue
            x = SPECIAL.to(dtype)
            x = x[~torch.isin(x, torch.tensor(LEFT_OUT.get(name, []), dtype=dtype))]
            low, high = (0.05, 9.0) if name in POSITIVE else (-0.9, 0.9)
            ordinary = uniform(200, low=low, high=high, dtype=dtype)
            if name in UNARY or name in POWERS:
                ordinary = randn(200, dtype=dtype, scale=2.0)
            x = torch.cat([x, ordinary])
            yield Case(
                f"{name}-edge-{short(dtype)}",
                function,
                [x],
                signed_zero=True,
                reference=_gelu_tanh if name == "gelu_tanh" else None,
                thorough=dtype == torch.float16,
            )
    for name, function in {**BINARY, "pow": torch.pow}.items():
        quotients = name in ("div_floor", "div_trunc", "floor_divide", "fmod", "remainder")
        pairs = [MODERATE_LEFT, MODERATE_RIGHT] if quotients else [LEFT, RIGHT]
        yield Case(f"{name}-edge-float32", function, pairs, signed_zero=True)
        if quotients or name == "pow":
            pairs = [side.double() for side in pairs]
            yield Case(f"{name}-edge-float64", function, pairs, signed_zero=True)
    for name, function in {
        "times_zero": lambda x: x * 0,
        "zero_times": lambda x: torch.zeros(24) * x,
        "minus_itself": lambda x: x - x,
        "equals_itself": lambda x: x == x,
        "differs_from_itself": lambda x: x != x,
        "at_least_itself": lambda x: x >= x,
    }.items():  # what a compiler without NaN and infinity would fold
        for dtype in (torch.float32, torch.bfloat16):
            yield Case(f"{name}-edge-{short(dtype)}", function, [SPECIAL.to(dtype)])
    for name, shape in {"empty": (0, 4), "0d": (), "one": (1,), "5d": (2, 1, 3, 2, 2)}.items():
        yield Case(f"silu-{name}", F.silu, [randn(*shape)])
        yield Case(f"add-{name}", lambda x: x + x * 2, [randn(*shape, dtype=torch.bfloat16)])


def numbers() -> Iterator[Case]:
    """Operands that are numbers, whose part is computed while lowering."""
    for exponent in (9, -9, math.inf, -math.inf, math.nan):
        power = partial(lambda n, x: x**n, exponent)
        yield Case(f"pow_{exponent}-number", power, [SPECIAL], signed_zero=True)
    for base in (2.0, 0.25, 1.0, 0.0, -2.0, math.inf):
        power = partial(lambda n, x: n**x, base)
        nearly = base in (0.25, 1.0, math.inf)
        yield Case(f"{base}_pow-number", power, [SPECIAL], signed_zero=True, thorough=nearly)
    for i, divisor in enumerate((3, -0.75, 0, math.inf)):
        for j, name in enumerate(("remainder", "floor_divide", "fmod")):
            divide = partial(lambda f, n, x: f(x, n), BINARY[name], divisor)
            case = Case(f"{name}_{divisor}-number", divide, [MODERATE], signed_zero=True)
            yield replace(case, thorough=(i + j) % 3 != 0)
    x = torch.cat([MODERATE, torch.arange(-40.0, 40) * 41])
    for divisor in (3, 0.1, -8, 0, -math.inf, math.nan):
        divide = partial(lambda n, x: x / n, divisor)
        yield Case(f"div_{divisor}-number", divide, [x], exact=True)
    for name in ("div_trunc", "div_floor"):
        divide = partial(lambda f, x: f(x, 41), BINARY[name])
        yield Case(f"{name}_41-number", divide, [x], exact=True)
        yield Case(f"{name}_41-number-float64", divide, [x.double()], exact=True)
    yield Case(
        "div_columns-number", lambda x: x[:, None] / torch.tensor([41.0, 0.3]), [x], exact=True
    )
    yield Case("div_10-number-float64", lambda x: x / 10, [x.double()])
    for weight in (0.3, 0.7, math.nan):
        blend = partial(lambda w, x: torch.lerp(x, x.flip(0), w), weight)
        yield Case(f"lerp_{weight}-number", blend, [MODERATE])
    yield Case("clamp_nan-number", lambda x: x.clamp(min=math.nan), [SPECIAL])
    yield Case("minimum_number", lambda x: x.clamp(max=0.5) + x.clamp(min=0.25), [SPECIAL])


def casts() -> Iterator[Case]:
    kinds = [torch.bool, *INTS, *FLOATS]
    for i, a in enumerate(kinds):
        x = randn(4, 5, dtype=a, scale=5.0)
        for j, b in enumerate(kinds):
            if (i + j) % 6 == 0 or a == torch.float32:
                function: Any = partial(lambda b, x: x.to(b), b)
                yield Case(f"cast-{short(a)}-{short(b)}", function, [x], exact=True)


def roundings() -> Iterator[Case]:
    """Every normal bfloat16, infinity and NaN, a little more, and ties."""
    high = torch.arange(1 << 16, dtype=torch.int32)
    high = high[(high & 0x7F80) != 0] << 16
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    x = (high[:, None] + low).view(torch.float32)
    yield Case("rounded-bfloat16", lambda x: x.to(torch.bfloat16), [x], exact=True)


CASES = grouped(
    [
        *[*floating(), *integral(), *boolean(), *promoted()],
        *[*edges(), *numbers(), *casts(), *roundings()],
    ],
    GRAPH,
)

test_pointwise = comparison(CASES)
