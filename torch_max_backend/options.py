"""MaxOptions: what ``torch.compile(..., backend="max", options={...})`` accepts."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch_max_backend.errors import OptionError


def _option(default: Any, *, choices: tuple[Any, ...] | None = None, in_key: bool) -> Any:
    return field(default=default, metadata={"choices": choices, "in_key": in_key})


@dataclass(frozen=True)
class MaxOptions:
    """Settings of one compilation.

    Args:
        compile: ``"lazy"`` compiles at the first call that needs the graph; ``"background"``
            answers calls with eager PyTorch until MAX is ready, then switches; what can be traced
            elsewhere is compiled in a process of its own.
        cache: read and write the disk cache.
        attention: ``"flash"`` lowers scaled_dot_product_attention to one kernel, ours on CPU and
            MAX's on GPU, ``"composed"`` to matmul, softmax, matmul, of which MAX fuses what it
            recognises.

        freeze: for inference: compute what depends on weights alone once, and keep the weights of
            linear layers on CPU packed as the products read them. Weights that change (an
            optimizer's step, ``load_state_dict``, ``copy_``, another tensor) are seen at the next
            call, which does so anew and warns; what is changed in place through ``.data`` or NumPy
            is not.

    Raises:
        OptionError: a value is not one of the choices.
    """

    compile: str = _option("lazy", choices=("lazy", "background"), in_key=False)
    cache: bool = _option(True, choices=(True, False), in_key=False)
    attention: str = _option("flash", choices=("flash", "composed"), in_key=True)

    freeze: bool = _option(False, choices=(True, False), in_key=True)

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices is not None and not any(value is c or value == c for c in choices):
                expected = ", ".join(map(repr, choices))
                raise OptionError(f"option {option.name!r} is one of {expected}; got {value!r}")

    @classmethod
    def from_mapping(
        cls, options: Mapping[str, Any] | MaxOptions | None, mode: str | None = None
    ) -> MaxOptions:
        """Builds options from what the user passed; an unknown name or mode is an OptionError."""
        if mode not in (None, "default"):
            raise OptionError(
                f"backend 'max' has no modes; got mode={mode!r}. Drop it, or set options={{...}}"
            )
        if isinstance(options, MaxOptions):
            return options
        options = dict(options or {})
        known = [option.name for option in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
                raise OptionError(
                    f"unknown option {name!r} for backend 'max'; the nearest is {close[0]!r}. "
                    f"Known options: {', '.join(known)}"
                )
        return cls(**options)

    def cache_key(self) -> dict[str, Any]:
        """The options that change the compiled executable."""
        return {
            option.name: getattr(self, option.name)
            for option in dataclasses.fields(self)
            if option.metadata["in_key"]
        }
