"""The package of Mojo kernels: made once, kept beside the compile cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from torch_max_backend import kernel_library
from torch_max_backend.errors import CompileError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_library, "SHIPPED", tmp_path / "shipped")
    kernel_library.kernel_library.cache_clear()
    yield tmp_path / "cache"
    kernel_library.kernel_library.cache_clear()


def test_made_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    library = kernel_library.kernel_library()
    assert library.is_file() and own_cache in library.parents
    assert list(library.parent.iterdir()) == [library]
    kernel_library.kernel_library.cache_clear()

    def again(path: Path) -> None:
        raise AssertionError("compiled twice")

    monkeypatch.setattr(kernel_library, "_precompile", again)
    assert kernel_library.kernel_library() == library


def test_shipped(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    kernel_library.ship()
    library = kernel_library.ship()
    assert [p for p in kernel_library.SHIPPED.rglob("*") if p.is_file()] == [library]
    assert kernel_library.kernel_library() == library and not own_cache.exists()
    kernel_library.kernel_library.cache_clear()
    monkeypatch.setattr(kernel_library, "version", lambda package: "0.1")  # of another compiler
    assert own_cache in kernel_library.kernel_library().parents


def test_a_cache_that_cannot_be_written(own_cache: Path, caplog: pytest.LogCaptureFixture):
    own_cache.write_text("a file in the place of the folder")
    library = kernel_library.kernel_library()
    assert library.is_file() and own_cache not in library.parents
    assert "cannot keep the kernels" in caplog.text


def test_sources_that_mojo_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "kernels"
    broken.mkdir()
    (broken / "__init__.mojo").write_text("def broken(:\n")
    monkeypatch.setattr(kernel_library, "SOURCES", broken)
    with pytest.raises(CompileError, match=r"refuses the kernels in .*reinstall(.|\n)*error:"):
        kernel_library.kernel_library()


def test_other_sources_are_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[Path] = []
    monkeypatch.setattr(kernel_library, "_precompile", made.append)
    kernel_library.kernel_library()
    other = tmp_path / "kernels"
    other.mkdir()
    (other / "__init__.mojo").write_text("def f():\n    pass\n")
    monkeypatch.setattr(kernel_library, "SOURCES", other)
    kernel_library.kernel_library.cache_clear()
    kernel_library.kernel_library()
    assert len(set(made)) == 2
