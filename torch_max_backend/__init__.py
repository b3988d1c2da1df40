"""torch_max_backend: a torch.compile backend that runs PyTorch graphs on Modular's MAX.

Importing this package imports neither MAX nor the table; both come with the first compilation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch_max_backend.threads import shorten_busy_wait

if TYPE_CHECKING:
    from torch_max_backend.accelerators import get_accelerators
    from torch_max_backend.aot.exporting import Export, export
    from torch_max_backend.aot.loaded import (
        InferenceResult,
        MaxCompiledModel,
        load,
        load_metadata_from_package,
    )
    from torch_max_backend.compiler import max_backend
    from torch_max_backend.errors import (
        CompileError,
        ExportError,
        InputError,
        LoweringError,
        MaxBackendError,
        OptionError,
        PackageError,
        RegistrationError,
        UnsupportedOpsError,
    )
    from torch_max_backend.options import MaxOptions
    from torch_max_backend.registry import MAPPING_TORCH_ATEN_TO_MAX, register_lowering
    from torch_max_backend.sizes import generic_sizes

__version__ = "0.1.0"
shorten_busy_wait()
_EXPORTS = {
    "CompileError": "errors",
    "Export": "aot.exporting",
    "ExportError": "errors",
    "InferenceResult": "aot.loaded",
    "InputError": "errors",
    "LoweringError": "errors",
    "MAPPING_TORCH_ATEN_TO_MAX": "registry",
    "MaxBackendError": "errors",
    "MaxCompiledModel": "aot.loaded",
    "MaxOptions": "options",
    "OptionError": "errors",
    "PackageError": "errors",
    "RegistrationError": "errors",
    "UnsupportedOpsError": "errors",
    "export": "aot.exporting",
    "generic_sizes": "sizes",
    "get_accelerators": "accelerators",
    "load": "aot.loaded",
    "load_metadata_from_package": "aot.loaded",
    "max_backend": "compiler",
    "register_lowering": "registry",
}
__all__ = [
    "MAPPING_TORCH_ATEN_TO_MAX",
    "CompileError",
    "Export",
    "ExportError",
    "InferenceResult",
    "InputError",
    "LoweringError",
    "MaxBackendError",
    "MaxCompiledModel",
    "MaxOptions",
    "OptionError",
    "PackageError",
    "RegistrationError",
    "UnsupportedOpsError",
    "export",
    "generic_sizes",
    "get_accelerators",
    "load",
    "load_metadata_from_package",
    "max_backend",
    "register_lowering",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torch_max_backend.garbage import imported

    # the registry is empty until the tables are imported
    tables = [f"{__name__}.tables"] if _EXPORTS[name] == "registry" else []
    value = getattr(imported(*tables, f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
