"""MAX's session of this process, and what turns an executable into models: the compile cache and
packages alike. Nothing of the compiler is imported here."""

from __future__ import annotations

import io
from functools import cache

from max import engine
from max.engine import InferenceSession, Model

from torch_max_backend.accelerators import get_accelerators
from torch_max_backend.time_slices import long_time_slices


@cache
def session() -> InferenceSession:
    """The one session of the process, over every device."""
    with long_time_slices():
        return InferenceSession(devices=get_accelerators())


def load_models(executable: bytes) -> list[Model]:
    """The models of an executable, in the order of its graphs.

    Raises:
        Exception: whatever MAX has against it.
    """
    return list(session().init_all(engine.read(io.BytesIO(executable))).values())


def load_model(executable: bytes) -> Model:
    """The model of an executable of one graph.

    Raises:
        ValueError: it has another number of graphs.
        Exception: whatever MAX has against it.
    """
    (model,) = load_models(executable)
    return model
