"""Times of the parts of a ViT in a forward pass."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vit import ViT, ViTConfig
from vit.cli.measuring import seconds

COMPONENTS = ("stem", "rope", "attention", "mlp", "block", "output_norm", "model")
"""The parts; one block stands for all, attention and MLP have their norms."""


@dataclass(frozen=True)
class ComponentRun:
    """What is timed, and how.

    Args:
        config: the YAML file.
        backend: ``"eager"`` or a backend of ``torch.compile``.
        components: of ``COMPONENTS``; what the model lacks is left out.
    """

    config: str
    batch_size: int
    device: str
    backend: str
    components: tuple[str, ...]
    warmup_iters: int
    latency_iters: int


def measure_components(case: ComponentRun) -> dict[str, float]:
    """The median milliseconds of each part."""
    config = ViTConfig.from_yaml(case.config)
    torch.manual_seed(0)
    model = config.instantiate().to(case.device).eval()
    x = torch.randn(case.batch_size, config.in_channels, *config.img_size)
    x = x.to(case.device, next(model.parameters()).dtype)
    calls = _calls(model, x)
    return {name: _median(case, calls[name]) for name in case.components if name in calls}


def _median(case: ComponentRun, call: _Call) -> float:
    run: Callable[..., Any] = call.module
    if case.backend != "eager":
        run = torch.compile(call.module, backend=case.backend, fullgraph=True, dynamic=False)

    def once() -> float:
        return seconds(case.device, lambda: run(*call.args, **call.kwargs))

    with torch.no_grad():
        for _ in range(max(1, case.warmup_iters)):
            once()
        return statistics.median(once() for _ in range(case.latency_iters)) * 1e3


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _calls(model: ViT, x: Tensor) -> dict[str, _Call]:
    """Each part with the arguments that it gets in a forward pass."""
    block = model.blocks[0]
    parts = {
        "stem": model.stem,
        "rope": model.rope,
        "attention": block.self_attention,
        "mlp": block.mlp,
        "block": block,
        "output_norm": model.output_norm,
        "model": model,
    }
    calls: dict[str, _Call] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name] = _Call(module, args, kwargs)

        return keep

    hooks = [
        part.register_forward_pre_hook(keeper(name), with_kwargs=True)
        for name, part in parts.items()
        if part is not None
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return calls
