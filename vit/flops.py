"""Floating-point operations of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.backends import mha
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def product_flops(model: nn.Module, x: Tensor) -> int:
    """Those of the matrix products of ``model(x)``, two per multiplication; meta tensors do."""
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    # the counter does not know the fused attention of every device, nor parameters as arguments
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), _taken_apart():
        functional_call(model, weights, (x,))
    return int(counter.get_total_flops())


@contextmanager
def _taken_apart() -> Iterator[None]:
    """Without the operators that nn.TransformerEncoderLayer and the like are at inference."""
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(before)
