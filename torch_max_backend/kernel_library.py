"""The Mojo kernels of ``kernels/`` as the package that MAX's compiler reads.

Mojo packages are bound to the compiler's version, not to a processor. A wheel of ``make wheel`` has
one for the version it was made with; else it is made at the first compilation on a machine, which
takes 3 s, and kept beside the compile cache.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from functools import cache as memoize
from importlib.metadata import version
from pathlib import Path

from mojo.run import subprocess_run_mojo

from torch_max_backend import cache
from torch_max_backend.digests import sources_digest
from torch_max_backend.errors import CompileError

log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent / "kernels"
SHIPPED = Path(__file__).parent / "precompiled"
_NAME = "torch_max_backend_kernels.mojoc"


@memoize
def kernel_library() -> Path:
    """The precompiled package.

    Raises:
        CompileError: Mojo refuses the sources.
    """
    name = _version()
    shipped = SHIPPED / name / _NAME
    folder = cache.directory() / "kernels" / name
    library = folder / _NAME
    for made in (shipped, library):
        if made.exists():
            return made
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # as the compile cache: costs time, not results
        log.warning("cannot keep the kernels in %s, made for one process: %s", folder, error)
        folder = Path(tempfile.mkdtemp(prefix="torch_max_backend_kernels_"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        library = folder / _NAME
    _precompile(library)
    return library


def ship() -> Path:
    """Makes the package among the sources, in the place of an older one, for a wheel to take along.

    Raises:
        CompileError: Mojo refuses the sources.
    """
    shutil.rmtree(SHIPPED, ignore_errors=True)
    library = SHIPPED / _version() / _NAME
    library.parent.mkdir(parents=True)
    _precompile(library)
    return library


def _version() -> str:
    """Of the sources and of the compiler."""
    return f"{sources_digest(SOURCES)[:16]}-mojo-{version('mojo-compiler')}"


def _precompile(library: Path) -> None:
    """Beside and renamed: another process may be doing the same."""
    with tempfile.TemporaryDirectory(dir=library.parent) as temporary:
        made = Path(temporary) / library.name
        run = subprocess_run_mojo(
            ["precompile", str(SOURCES), "-o", str(made)], capture_output=True, text=True
        )
        if run.returncode:
            raise CompileError(
                f"Mojo {version('mojo-compiler')} refuses the kernels in {SOURCES}; "
                f"reinstall torch_max_backend and max\n{run.stderr}"
            )
        os.replace(made, library)
