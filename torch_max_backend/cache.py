"""The disk cache of MAX executables.

One file per program: a line of JSON (key, checksum), then the executable. And one of JSON alone per
graph, which says what program it was compiled in, and per graph of Dynamo's whose executable can be
called without tracing it. Files are written beside and renamed; a file that is short, altered or
unreadable is a miss and is removed (MAX crashes on altered executables, so the checksum is compared
before MAX sees a byte).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from torch_max_backend import flags
from torch_max_backend.replacing import replacing

log = logging.getLogger(__name__)
_SUFFIX = ".max"
_PLACE_SUFFIX = ".graph"
_CALL_SUFFIX = ".call"
_FORMAT = 3


@dataclass(frozen=True)
class Place:
    """Where a graph's executable is: the key of a program and the position among its graphs."""

    program: str
    position: int


def directory() -> Path:
    """The folder of the cache; TORCH_MAX_BACKEND_CACHE_DIR or the user's cache folder."""
    configured = flags.cache_directory()
    return Path(configured) if configured else user_cache_path("torch_max_backend", appauthor=False)


def _path(key: str, suffix: str) -> Path:
    return directory() / key[:2] / (key + suffix)


def load(key: str) -> bytes | None:
    """The executable of a program, or None; a damaged one is removed and counts as a miss."""
    found = _read(key, _SUFFIX)
    return None if found is None else found[1]


def place(graph: str) -> Place | None:
    """What a graph was compiled in, alone or with others; None where that is gone."""
    found = _read(graph, _PLACE_SUFFIX)
    if found is None:
        return None
    known = Place(found[0]["program"], found[0]["position"])
    return known if _path(known.program, _SUFFIX).exists() else None


def load_call(key: str) -> dict[str, Any] | None:
    """What ``store_call`` was given, or None."""
    found = _read(key, _CALL_SUFFIX)
    return found and found[0]["call"]


def _read(key: str, suffix: str) -> tuple[dict[str, Any], bytes] | None:
    path = _path(key, suffix)
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        log.warning("removing the folder in the place of the cache entry %s", path)
        shutil.rmtree(path, ignore_errors=True)
        return None
    except OSError:
        return None
    try:
        head, _, executable = data.partition(b"\n")
        meta = dict(json.loads(head))
        if meta["format"] != _FORMAT or meta["key"] != key:
            raise ValueError("made for another key or by another version")
        if meta.pop("sha256") != _checksum(meta, executable):
            raise ValueError("the checksum differs")
    except (ValueError, KeyError, TypeError) as error:
        log.warning("removing the damaged cache entry %s: %s", path, error)
        _remove(path)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # least recently used goes first
    return meta, executable


def store(key: str, executable: bytes, graphs: Sequence[str]) -> None:
    """Writes a program's executable and, for each of its graphs in their order, its place.

    A cache that cannot be written costs time, not results: it is logged and passed over.
    """
    with _failures_logged():
        written = {_write(key, _SUFFIX, {}, executable)}
        for position, graph in enumerate(graphs):
            place = {"program": key, "position": position}
            written.add(_write(graph, _PLACE_SUFFIX, place, b""))
        _shrink(flags.cache_size_limit(), written)


def store_call(key: str, call: Mapping[str, Any]) -> None:
    """Writes how a graph is called, as JSON, under a key of its own; as ``store`` does."""
    with _failures_logged():
        _write(key, _CALL_SUFFIX, {"call": call}, b"")


def _write(key: str, suffix: str, meta: Mapping[str, Any], executable: bytes) -> Path:
    head = {"format": _FORMAT, "key": key, **meta}
    head["sha256"] = _checksum(head, executable)
    path = _path(key, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        new.write_bytes(json.dumps(head).encode() + b"\n" + executable)
    return path


@contextlib.contextmanager
def _failures_logged() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("cannot write the compile cache in %s: %s", directory(), error)


def usage() -> tuple[int, int]:
    """How many executables there are, and the bytes of all entries."""
    return len(_paths(_SUFFIX)), sum(path.stat().st_size for path in _entries())


def clear() -> int:
    """Removes every entry; returns how many executables there were."""
    executables = _paths(_SUFFIX)
    for path in _entries():
        _remove(path)
    return len(executables)


def _entries() -> list[Path]:
    return [path for suffix in (_SUFFIX, _PLACE_SUFFIX, _CALL_SUFFIX) for path in _paths(suffix)]


def _paths(suffix: str) -> list[Path]:
    return list(directory().glob(f"??/*{suffix}"))


def _checksum(head: Mapping[str, Any], executable: bytes) -> str:
    """Of the head too: another position would give another graph's results."""
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    digest.update(executable)
    return digest.hexdigest()


def _shrink(limit: int, kept: Container[Path]) -> None:
    """Removes the least recently used entries until the cache fits; never those just written."""
    found = []
    for path in _entries():
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    found.sort()
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= limit:
            break
        if path not in kept:
            _remove(path)
            total -= size


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
