"""Environment flags. Each is read when it is asked for, so that tests and notebooks can set it."""

from __future__ import annotations

import logging
import os

log = logging.getLogger(__name__)
_TRUE = {"1", "true", "yes"}


def _is_set(name: str) -> bool:
    prefixes = ("TORCH_MAX_BACKEND_", "PYTORCH_MAX_BACKEND_")
    return any(os.environ.get(prefix + name, "").strip().lower() in _TRUE for prefix in prefixes)


def profiling_enabled() -> bool:
    """TORCH_MAX_BACKEND_PROFILE: time every phase and call; a table at exit."""
    return _is_set("PROFILE")


def verbose_enabled() -> bool:
    """TORCH_MAX_BACKEND_VERBOSE: log FX graphs, op counts, MAX graphs and fused kernels."""
    return _is_set("VERBOSE")


def trace_file() -> str | None:
    """TORCH_MAX_BACKEND_TRACE=file: write the profile as a Chrome trace at exit."""
    return os.environ.get("TORCH_MAX_BACKEND_TRACE") or None


def cache_directory() -> str | None:
    """TORCH_MAX_BACKEND_CACHE_DIR: where executables are kept; None = the user's cache folder."""
    return os.environ.get("TORCH_MAX_BACKEND_CACHE_DIR") or None


def cache_size_limit() -> int:
    """TORCH_MAX_BACKEND_CACHE_SIZE: bytes the cache may take, 4 GiB by default."""
    size = os.environ.get("TORCH_MAX_BACKEND_CACHE_SIZE", "").strip()
    if size.isdecimal():
        return int(size)
    if size:
        log.warning("TORCH_MAX_BACKEND_CACHE_SIZE=%r is no number of bytes; using 4 GiB", size)
    return 4 << 30
