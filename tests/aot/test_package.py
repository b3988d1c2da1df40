"""The file of a package: what is written is read, and nothing else is. No compile."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import threading
import zipfile
from pathlib import Path

import pytest

from torch_max_backend.aot import package
from torch_max_backend.aot.package import Package
from torch_max_backend.errors import (
    DamagedPackageError,
    ExportError,
    NotAPackageError,
    PackageError,
    PackageNotFoundError,
    PackageVersionError,
)

MEMBERS = {
    "metadata.json": json.dumps({"a": 1}).encode(),
    "executable.max": bytes(random.Random(0).randbytes(3000)),
    "weights.safetensors": bytes(range(256)) * 20,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.max"
    package.write(path, "model", MEMBERS)
    return path


def read_all(path: Path) -> dict[str, bytes]:
    opened = Package(path)
    return {name: bytes(opened.member(name)) for name in MEMBERS}


def test_what_is_written_is_read(file: Path, tmp_path: Path):
    assert read_all(file) == MEMBERS
    assert Package(file).json("metadata.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.max"]


def test_it_is_a_zip_file_with_its_data_at_pages(file: Path):
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {
            "version",
            "manifest.json",
            *(f"model/{name}" for name in MEMBERS),
        }
    assert all(offset % 4096 == 0 for offset, _ in Package(file)._members.values())


def test_a_member_from_a_file(tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 5_000_000)
    package.write(tmp_path / "a.max", "model", {"weights.safetensors": source})
    assert bytes(Package(tmp_path / "a.max").member("weights.safetensors")) == source.read_bytes()


def test_the_same_model_gives_the_same_file(file: Path, tmp_path: Path):
    package.write(tmp_path / "b.max", "model", MEMBERS)
    assert (tmp_path / "b.max").read_bytes() == file.read_bytes()


def test_every_byte_flipped(file: Path):
    """Never a wrong byte of a member: an error, or what was written."""
    data = bytearray(file.read_bytes())
    errors = 0
    for place in range(len(data)):
        if data[place] == 0 and place % 7:
            continue  # most of the padding
        data[place] ^= 1 << (place % 8)
        file.write_bytes(data)
        try:
            assert read_all(file) == MEMBERS, place
        except PackageError:
            errors += 1
        data[place] ^= 1 << (place % 8)
    assert errors > sum(map(len, MEMBERS.values()))


def test_every_length(file: Path):
    data = file.read_bytes()
    for length in [*range(0, len(data), 101), *range(len(data) - 300, len(data))]:
        file.write_bytes(data[:length])
        with pytest.raises(PackageError):
            read_all(file)


def test_no_file(tmp_path: Path):
    with pytest.raises(PackageNotFoundError, match=r"no package at .*export"):
        Package(tmp_path / "a.max")
    with pytest.raises(FileNotFoundError):
        Package(tmp_path / "a.max")


def test_other_files(tmp_path: Path):
    path = tmp_path / "a.max"
    for content in (b"", b"text", os.urandom(5000)):
        path.write_bytes(content)
        with pytest.raises(NotAPackageError, match=str(path)):
            Package(path)
    with pytest.raises(NotAPackageError):
        Package(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(NotAPackageError, match=r"a zip file but not a package.*manifest"):
        Package(path)


def test_another_model(file: Path):
    with pytest.raises(NotAPackageError, match="its models are: model"):
        Package(file, "other").json("metadata.json")


def test_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(package, "FORMAT", 7)
    package.write(tmp_path / "a.max", "model", MEMBERS)
    monkeypatch.undo()
    message = rf"format '7'.*reads format {package.FORMAT}; export"
    with pytest.raises(PackageVersionError, match=message):
        Package(tmp_path / "a.max")


def hostile(path: Path, *entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_files(tmp_path: Path):
    """A bomb, a path out of the folder, a member twice, one that the manifest does not know."""
    path, empty = tmp_path / "a.max", ("manifest.json", b"{}")
    version = ("version", str(package.FORMAT).encode())
    bomb = ("manifest.json", b" " * (1 << 28))
    with pytest.raises(NotAPackageError, match="compressed"):
        Package(hostile(path, version, bomb, method=zipfile.ZIP_DEFLATED))
    with pytest.raises(DamagedPackageError, match="bytes"):
        Package(hostile(path, version, bomb))
    with pytest.raises(DamagedPackageError, match="manifest"):
        Package(hostile(path, version, empty, ("../../outside", b"x")))
    assert not (tmp_path.parents[1] / "outside").exists()
    with pytest.raises(DamagedPackageError, match="twice"):
        Package(hostile(path, version, version, empty))
    deep = ("manifest.json", b"[" * 100_000)
    with pytest.raises(DamagedPackageError):
        Package(hostile(path, version, deep))


def test_a_full_disk(file: Path, monkeypatch: pytest.MonkeyPatch):
    before = file.read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match=r"cannot write .*No space left.*nothing was changed"):
        package.write(file, "model", {"metadata.json": b"{}"})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["a.max"]


def write_and_be_killed(step: str, path: Path) -> None:
    setattr(os, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    package.write(path, "model", {"call_spec.json": bytes(100_000)})


@pytest.mark.parametrize("step", ["fsync", "replace"])  # the whole file is written, and named
def test_a_process_that_is_killed(file: Path, tmp_path: Path, step: str):
    before = file.read_bytes()
    for path in (file, tmp_path / "new.max"):
        process = multiprocessing.get_context("fork").Process(
            target=write_and_be_killed, args=(step, path)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert file.read_bytes() == before
    assert not (tmp_path / "new.max").exists()


def test_two_at_once(file: Path):
    """Whichever is last, the file is one of the two."""
    contents = [{**MEMBERS, "metadata.json": str(i).encode() * 1000} for i in range(8)]
    threads = [
        threading.Thread(target=package.write, args=(file, "model", members))
        for members in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_all(file) in contents
    assert [path.name for path in file.parent.iterdir()] == ["a.max"]
