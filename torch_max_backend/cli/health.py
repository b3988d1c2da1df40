"""The checks of ``max-backend check``: each says whether it passed, what it saw, and what to do.

None lets an error out: on a machine where MAX is missing or broken the report is still whole.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch_max_backend.cli.output import first_line

PACKAGES = ("torch", "max", "mojo-compiler", "numpy", "safetensors")
DTYPES = ("float32", "float16", "bfloat16")
_LARGE = 1 << 20  # elements of the large element-wise operation


@dataclass(frozen=True)
class Check:
    """One line of the report; ``remedy`` is empty where it passed."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    seconds: float = 0.0


def report(model: Path | None, progress: Callable[[str], None]) -> dict[str, Any]:
    """All checks, in the order in which one rests on another."""
    checks: list[Check] = []

    def run(name: str, remedy: str, function: Callable[[], str]) -> bool:
        progress(f"{name} ...")
        start = time.perf_counter()
        try:
            check = Check(name, True, function())
        except Exception as error:
            check = Check(name, False, f"{type(error).__name__}: {first_line(error)}", remedy)
        seconds = round(time.perf_counter() - start, 2)
        checks.append(Check(**{**asdict(check), "seconds": seconds}))
        return check.ok

    run("packages", "pip install torch-max-backend installs what is missing", _packages)
    run(
        "compile cache",
        "set TORCH_MAX_BACKEND_CACHE_DIR to a folder that can be written",
        _cache,
    )
    imported = run(
        "import MAX", "pip install 'max>=26.6,<26.7' (on Linux or macOS, 64 bit)", _import_max
    )
    if imported:
        run("devices", "update the GPU's driver, or hide it (CUDA_VISIBLE_DEVICES=)", _devices)
        run("kernels", "reinstall torch-max-backend and max", _kernels)
        for device in _torch_devices():
            run(
                f"operations on {device}",
                "TORCH_MAX_BACKEND_VERBOSE=1 shows the graph; report it with this output",
                partial(_operations, device),
            )
        if model is not None:
            run(f"model {model}", "export it again on this machine", partial(_model, model))
    return {
        "ok": all(check.ok for check in checks),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "checks": [asdict(check) for check in checks],
    }


def _packages() -> str:
    found, missing = [], []
    for name in ("torch-max-backend", *PACKAGES):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise RuntimeError(f"not installed: {', '.join(missing)}")
    return ", ".join(found)


def _cache() -> str:
    from torch_max_backend import cache

    folder = cache.directory()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder):
        pass
    entries, size = cache.usage()
    return f"{folder}: {entries} programs, {size / 2**20:.0f} MiB"


def _import_max() -> str:
    import max.engine  # noqa: F401

    return f"max {version('max')}"


def _devices() -> str:
    from torch_max_backend import get_accelerators

    return ", ".join(str(device) for device in get_accelerators())


def _kernels() -> str:
    from torch_max_backend.kernel_library import kernel_library

    return str(kernel_library())


def _torch_devices() -> list[str]:
    import torch

    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu", *([str(kind.type)] if kind is not None else [])]


def _operations(device: str) -> str:
    """Fill, strided copy, matrix product and a large element-wise operation in every dtype, in one
    graph, beside eager PyTorch."""
    import torch

    generator = torch.Generator().manual_seed(0)
    small = torch.randn(32, 48, generator=generator)
    large = torch.randn(_LARGE, generator=generator)
    inputs = [x.to(device, getattr(torch, name)) for name in DTYPES for x in (small, large)]

    def operations(*tensors: torch.Tensor) -> list[torch.Tensor]:
        results = []
        for x, y in zip(tensors[::2], tensors[1::2], strict=True):
            results += [torch.full_like(x, 1.5), x[::2, ::3].clone(), x @ x.T, y * 2 + y.sigmoid()]
        return results

    compiled = torch.compile(operations, backend="max", fullgraph=True, dynamic=False)
    with torch.no_grad():
        for ours, theirs in zip(compiled(*inputs), operations(*inputs), strict=True):
            torch.testing.assert_close(ours, theirs)
    return f"{', '.join(DTYPES)}: fill, strided copy, matrix product, element-wise"


def _model(path: Path) -> str:
    import torch

    from torch_max_backend import load

    start = time.perf_counter()
    model = load(path)
    loaded = time.perf_counter()
    with torch.no_grad():
        model.run(model.example_inputs())
    return f"loaded in {loaded - start:.2f} s, first result in {time.perf_counter() - loaded:.2f} s"
