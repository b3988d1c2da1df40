"""Tracing with sizes that stay generic, so that one compile serves every batch and image size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.fx.experimental._config as symbolic_config


@contextmanager
def generic_sizes() -> Iterator[None]:
    """Within it, ``torch.compile(dynamic=True)`` traces one graph for all sizes.

    By default Dynamo traces a size of 1 apart from the others and ties sizes that happen to be
    equal in the first call (a square image), so that a batch of 1 or an oblong image compiles
    again. Wrap the first call::

        with torch_max_backend.generic_sizes():
            model(images)

    Sets two experimental options of PyTorch's symbolic shapes for the duration of the block.
    """
    with symbolic_config.patch(  # type: ignore[attr-defined]
        backed_size_oblivious=True, use_duck_shape=False
    ):
        yield
