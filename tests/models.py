"""Small seeded models as comparison cases: every weight random, a float64 twin as reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from tests.harness import Case, randn, short


def randomised(model: nn.Module, scale: float = 0.2) -> nn.Module:
    """The model in eval mode with every parameter drawn anew (a fresh layer may be the identity).

    Vectors that scale (norm weights, layer scale) are drawn around 1.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            gain = parameter.ndim == 1 and name.endswith(("weight", "gamma", "lambda1"))
            parameter.copy_(noise + 1 if gain else noise)
    return model.eval()


def model_case(
    name: str,
    model: nn.Module,
    *inputs: torch.Tensor,
    results: Callable[[Any], Any],
    dtype: torch.dtype = torch.float32,
    dynamic: bool | Literal["batch"] = True,
    others: Sequence[Sequence[torch.Tensor]] = (),
) -> Case:
    """A case that compares ``results(model(*inputs))`` with eager and with its float64 twin."""
    model = randomised(model).to(dtype)

    def convert(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [v.to(dtype) if v.is_floating_point() else v for v in values]

    def twin(*args: torch.Tensor) -> Any:
        """In the precision that the harness asks for, which has made it the default."""
        return results(copy.deepcopy(model).to(torch.get_default_dtype())(*args))

    return Case(
        f"{name}-{short(dtype)}",
        lambda *args: results(model(*args)),
        convert(inputs),
        dynamic=dynamic,
        others=[convert(other) for other in others],
        scale="tensor",
        reference=twin,
    )


def images(batch: int, height: int, width: int | None = None) -> torch.Tensor:
    """(batch, 3, height, width) of normal numbers."""
    return randn(batch, 3, height, width or height)
