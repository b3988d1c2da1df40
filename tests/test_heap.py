"""Memory that is free goes back to the system after a compile. Nothing is compiled here."""

import ctypes
from types import SimpleNamespace

import pytest

from benchmarks import resident
from torch_max_backend import compilation
from torch_max_backend.c_library import c_function
from torch_max_backend.heap import return_free_memory

MIB = 1 << 20


@pytest.mark.skipif(c_function("malloc_trim") is None, reason="glibc only")
def test_what_was_freed_goes_back():
    kept = [bytearray(2048) for _ in range(64 * MIB // 2048)]
    del kept[:-1]  # below what is still used, so that malloc does not return it by itself
    before = resident.now()
    return_free_memory()
    assert before - resident.now() > 48 * MIB


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    return_free_memory()


def test_after_a_compile(monkeypatch):
    events = []

    def compile(module, custom_extensions):
        events.append("compile")
        return module

    monkeypatch.setattr(compilation, "session", lambda: SimpleNamespace(compile=compile))
    monkeypatch.setattr(compilation, "kernel_library", lambda: None)
    monkeypatch.setattr(compilation, "return_free_memory", lambda: events.append("return"))
    assert compilation._compiled("module") == "module"
    assert events == ["compile", "return"]
