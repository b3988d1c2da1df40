"""The file of a package: a zip, written beside and renamed, checked before any of it is used.

    version                       the format's version, a number
    <model>/metadata.json         what the model is; see metadata.py
    <model>/call_spec.json        how it is called; see call_spec.py
    <model>/executable.max        MAX's executable
    <model>/weights.safetensors   the weights, unless they lie beside the package
    manifest.json                 size and SHA-256 of every other member

Members are stored as they are, weights at a multiple of a page, so that they can be mapped. Nothing
is ever extracted to the disk.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch_max_backend.errors import (
    DamagedPackageError,
    ExportError,
    NotAPackageError,
    PackageNotFoundError,
    PackageVersionError,
)
from torch_max_backend.replacing import replacing

FORMAT = 2
VERSION = "version"
MANIFEST = "manifest.json"
METADATA = "metadata.json"
CALL_SPEC = "call_spec.json"
EXECUTABLE = "executable.max"
WEIGHTS = "weights.safetensors"
_PAGE = 4096
_CHUNK = 1 << 20
_LARGEST_TEXT = 64 << 20  # bytes of a JSON member
_FIXED_HEADER = 30  # bytes of a zip's local header before the name
_ZIP64_FIELD = 20
_PADDING_FIELD = 4  # identifier and length
_PADDING_ID = 0x7078


def write(path: Path, model_name: str, members: Mapping[str, bytes | Path]) -> None:
    """Writes a package of one model; members are data or the files that hold it.

    Raises:
        ExportError: the file cannot be written; what was there before is untouched.
    """
    try:
        with replacing(path) as new, new.open("wb") as file:
            _write_zip(file, model_name, members)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}; nothing was changed there") from error


def _write_zip(file: Any, model_name: str, members: Mapping[str, bytes | Path]) -> None:
    manifest: dict[str, dict[str, Any]] = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        manifest[VERSION] = _write_member(archive, file, VERSION, str(FORMAT).encode())
        for name, source in members.items():
            full = f"{model_name}/{name}"
            manifest[full] = _write_member(archive, file, full, source)
        _write_member(archive, file, MANIFEST, to_text(manifest))


def _write_member(
    archive: zipfile.ZipFile, file: Any, name: str, source: bytes | Path
) -> dict[str, Any]:
    info = zipfile.ZipInfo(name)  # without a date: the same model gives the same file
    info.extra = _padding(file.tell() + _FIXED_HEADER + len(name.encode()) + _ZIP64_FIELD)
    digest, size = hashlib.sha256(), 0
    with archive.open(info, "w", force_zip64=True) as member:
        for chunk in _chunks(source):
            member.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def _padding(position: int) -> bytes:
    """A field for a zip's header that makes the data start at a page."""
    room = -(position + _PADDING_FIELD) % _PAGE
    return struct.pack("<HH", _PADDING_ID, room) + bytes(room)


def _chunks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def mapped(path: Path) -> mmap.mmap:
    """A file in memory, copied where it is written to: tensors over it may be, the file stays."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def to_text(content: Any) -> bytes:
    """A JSON member."""
    return json.dumps(content, indent=1).encode()


class Package:
    """An open package: its members as views of the mapped file.

    Raises:
        PackageNotFoundError, NotAPackageError, DamagedPackageError, PackageVersionError.
    """

    def __init__(self, path: str | os.PathLike[str], model_name: str = "model") -> None:
        self.path = Path(path)
        self.model_name = model_name
        try:
            self._data = mapped(self.path)
        except FileNotFoundError:
            raise PackageNotFoundError(
                f"no package at {self.path}; torch_max_backend.export(..., path=...) makes one"
            ) from None
        except (OSError, ValueError) as error:  # a folder, no permission, an empty file
            raise NotAPackageError(f"cannot read {self.path}: {error}") from error
        self._members = self._directory()
        self._check_version()
        self._manifest = self._read_manifest()

    def _directory(self) -> dict[str, tuple[int, int]]:
        """Offset and size of each member, from the zip's own directory."""
        members: dict[str, tuple[int, int]] = {}
        try:
            with self.path.open("rb") as file, zipfile.ZipFile(file) as archive:
                for info in archive.infolist():
                    if info.filename in members:
                        raise DamagedPackageError(f"{self.path} holds {info.filename!r} twice")
                    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
                        raise NotAPackageError(
                            f"{self.path}: {info.filename!r} is compressed or encrypted, which no "
                            "member of a package is"
                        )
                    members[info.filename] = (self._offset(info), info.file_size)
        except zipfile.BadZipFile as error:
            start = bytes(self._data[:4])
            if start == b"PK\x03\x04":
                raise self._damaged(str(error)) from error
            raise NotAPackageError(
                f"{self.path} is not a package of torch_max_backend (it is no zip file)"
            ) from error
        except (ValueError, struct.error, NotImplementedError, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from error
        if MANIFEST not in members or VERSION not in members:
            raise NotAPackageError(
                f"{self.path} is a zip file but not a package of torch_max_backend: it has no "
                f"{MANIFEST} or no {VERSION}"
            )
        return members

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Where a member's data starts: behind its local header."""
        start = info.header_offset
        header = bytes(self._data[start : start + _FIXED_HEADER])
        if len(header) < _FIXED_HEADER or header[:4] != b"PK\x03\x04":
            raise self._damaged(f"{info.filename!r} has no header where the directory says")
        name, extra = struct.unpack("<HH", header[26:30])
        offset = start + _FIXED_HEADER + name + extra
        if offset + info.file_size > len(self._data):
            raise self._damaged(f"{info.filename!r} ends beyond the file")
        return offset

    def _check_version(self) -> None:
        found = bytes(self._view(VERSION)).decode("ascii", "replace").strip()
        if found != str(FORMAT):
            raise PackageVersionError(
                f"{self.path} has format {found!r}, this torch_max_backend reads format {FORMAT}; "
                "export the model again"
            )

    def _read_manifest(self) -> dict[str, dict[str, Any]]:
        manifest = self._parse(MANIFEST)
        named = all(
            isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
            for entry in manifest.values()
        )
        if not named or manifest.keys() != self._members.keys() - {MANIFEST}:
            raise self._damaged("its manifest does not list what it holds")
        return manifest

    def _damaged(self, what: str) -> DamagedPackageError:
        return DamagedPackageError(f"{self.path} is damaged: {what}; copy or export it again")

    def _view(self, name: str) -> memoryview:
        offset, size = self._members[name]
        return memoryview(self._data)[offset : offset + size]

    def _parse(self, name: str) -> dict[str, Any]:
        view = self._view(name)
        if len(view) > _LARGEST_TEXT:
            raise self._damaged(f"{name} has {len(view)} bytes")
        try:
            found = json.loads(bytes(view))
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"{name}: {error}") from error
        if not isinstance(found, dict):
            raise self._damaged(f"{name} is no JSON object")
        return found

    def has(self, member: str) -> bool:
        """Whether the model has this member."""
        return f"{self.model_name}/{member}" in self._members

    def member(self, member: str) -> memoryview:
        """The data of a member of the model, its checksum compared.

        Raises:
            NotAPackageError: no model of that name.
            DamagedPackageError: it is not what was written.
        """
        name = f"{self.model_name}/{member}"
        if name not in self._members:
            models = sorted({key.split("/")[0] for key in self._members if "/" in key})
            raise NotAPackageError(
                f"{self.path} has no {name}; its models are: {', '.join(models) or 'none'}"
            )
        view = self._view(name)
        if hashlib.sha256(view).hexdigest() != self._manifest[name]["sha256"]:
            raise self._damaged(f"the checksum of {name} differs")
        return view

    def json(self, member: str) -> dict[str, Any]:
        """A JSON member of the model."""
        self.member(member)
        return self._parse(f"{self.model_name}/{member}")
