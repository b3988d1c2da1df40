"""Quantisation of chosen Linear modules by torchao, an optional dependency."""

from collections.abc import Collection
from typing import Any

from torch import nn


def quantize_linears(module: nn.Module, config: Any, names: Collection[str]) -> None:
    """Quantise in place the Linear submodules ``names`` of ``module``; ``config=None`` does
    nothing.

    ``config`` is a torchao config such as ``Int8WeightOnlyConfig()``. Raises ImportError if torchao
    is not installed.
    """
    if config is None:
        return
    try:
        from torchao.quantization import quantize_
    except ImportError as e:
        raise ImportError(
            "Quantization needs torchao, which cannot be imported here: pip install torchao"
        ) from e
    # The parent is passed, since torchao may replace the module itself.
    quantize_(module, config, lambda m, name: isinstance(m, nn.Linear) and name in names)
