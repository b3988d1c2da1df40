"""Every error the backend raises on purpose; all derive from MaxBackendError."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class MaxBackendError(RuntimeError):
    """Base class of the errors of torch_max_backend."""


class OptionError(MaxBackendError, ValueError):
    """An option of ``torch.compile(options=...)`` is unknown or has a wrong value."""


class InputError(MaxBackendError, ValueError):
    """A compiled graph was called with inputs it cannot take (device, dtype, layout)."""


class LoweringError(MaxBackendError):
    """A lowering failed; the message names the overload, the node and the user's source line."""


class CompileError(MaxBackendError):
    """MAX refused a graph that was lowered without an error."""


class RegistrationError(MaxBackendError):
    """A lowering was registered for a wrong key or with a signature that its schema forbids."""


class PackageError(MaxBackendError):
    """Base class of what can be wrong with an exported package and with calls of it."""


class ExportError(PackageError):
    """A model cannot be exported as asked; nothing was written."""


class PackageNotFoundError(PackageError, FileNotFoundError):
    """There is no file of that name, or its weights beside it are missing."""


class NotAPackageError(PackageError):
    """The file is something else, or holds no model of that name."""


class DamagedPackageError(PackageError):
    """The file is cut short, altered or contradicts itself."""


class PackageVersionError(PackageError):
    """The package was made by versions that this installation cannot run."""


class PackageDeviceError(PackageError):
    """The package was made for another kind of device."""


class PackageCpuError(PackageError):
    """The package holds instructions that this processor lacks."""


class PackageInputError(PackageError, InputError):
    """A loaded model was called with inputs of a wrong number, rank, dtype, device or shape."""


class ConstantsError(PackageError, ValueError):
    """New weights do not fit: unknown, missing or mis-shaped names, all of them listed."""


@dataclass(frozen=True)
class UnsupportedOp:
    """One operator of a graph that has no lowering, or whose lowering refuses this use of it.

    Args:
        target: the overload, e.g. ``aten.fft_fft.default``.
        reason: why it cannot be lowered.
        source: first place in the user's code that reaches it, ``"file:line, in function: code"``.
        count: how many nodes of the graph it stands for.
    """

    target: str
    reason: str
    source: str
    count: int = 1


class UnsupportedOpsError(MaxBackendError):
    """The graph holds operators that cannot be lowered; lists all of them at once.

    ``ops`` keeps the entries as data.
    """

    def __init__(self, ops: Sequence[UnsupportedOp]) -> None:
        self.ops = tuple(ops)
        lines = [f"{len(self.ops)} operator(s) of this graph cannot be lowered to MAX:"]
        for op in self.ops:
            times = f" ({op.count} times)" if op.count > 1 else ""
            lines += [f"  - {op.target}{times}: {op.reason}", f"      at {op.source}"]
        lines += [
            "What you can do:",
            "  - register a lowering: torch_max_backend.register_lowering(overload)(function);",
            "  - keep that part out of the compiled region with torch.compiler.disable, or drop",
            "    fullgraph=True so that a graph break can fall there;",
            "  - rewrite that line with supported operators (the table: aten_functions.py).",
        ]
        super().__init__("\n".join(lines))
