"""What an executable depends on beside its graphs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from max.driver import accelerator_count

from torch_max_backend.accelerators import this_gpu
from torch_max_backend.cpu import cpu_features, cpu_target
from torch_max_backend.digests import digest_of, sources_digest

_PACKAGE = Path(__file__).parent


def environment() -> tuple[str, ...]:
    """The processor that code is made for, versions of torch, MAX and this package's sources, the
    CPU's features and the accelerators, and how precise products on those are."""
    precision = torch.get_float32_matmul_precision() if accelerator_count() else "on CPU"
    return (f"for {cpu_target()}", f"products {precision}", *_machine())


@cache
def _machine() -> tuple[str, ...]:
    return (
        f"torch {torch.__version__}",
        f"max {version('max')}",
        f"sources {sources_digest(_PACKAGE)}",
        f"cpu {platform.machine()} {cpu_features()}",
        f"{accelerator_count()} accelerators, {this_gpu()}",
    )


def program_key(graphs: Sequence[str]) -> str:
    """The key of several graphs compiled as one module, in this order, in this environment."""
    return digest_of(graphs, environment())
