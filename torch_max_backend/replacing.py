"""Files that appear whole or not at all: written beside their place and renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_LEFT_BEHIND = 24 * 3600  # seconds after which a writer is taken for dead


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new path beside ``path`` to write to; it takes that place when the block ends without an
    error and is removed otherwise. Its mode is that of any new file; safetensors, which writes one
    of its own, lets nobody else read it.

    Raises:
        OSError: the file cannot be moved to its place; what was there before is untouched.
    """
    remove_left_behind(path)
    temporary = path.with_name(f"{_prefix(path)}{os.urandom(6).hex()}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # FileNotFoundError once it was moved
            temporary.unlink()


def remove_left_behind(path: Path) -> None:
    """Removes what writers of ``path`` left beside it when they were killed, a day ago or more."""
    for found in path.parent.glob(f"{glob.escape(_prefix(path))}*.tmp"):
        with contextlib.suppress(OSError):  # another writer removes it
            if time.time() - found.stat().st_mtime < _LEFT_BEHIND:
                continue
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()


def _prefix(path: Path) -> str:
    return f".{path.name}."
