"""Element-wise operators against eager and float64."""

from __future__ import annotations

import torch

from tests.harness import FLOATS, Case, comparison, randn, short

UNARY = {
    "abs": torch.abs,
    "exp": torch.exp,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "tanh": torch.tanh,
    "neg": torch.neg,
    "floor": torch.floor,
    "expm1": torch.expm1,
    "silu": torch.nn.functional.silu,
}

CASES = [
    Case(f"{name}-{short(dtype)}", function, [randn(4, 5, dtype=dtype)], group=f"unary {dtype}")
    for dtype in FLOATS
    for name, function in UNARY.items()
]

test_pointwise = comparison(CASES)
