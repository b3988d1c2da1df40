"""The resident memory of this process; Linux only."""

from __future__ import annotations

from pathlib import Path


def reset_peak() -> None:
    """Forgets the peak so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes resident at most since the start or ``reset_peak``."""
    return _entry("VmHWM")


def now() -> int:
    """Bytes resident now."""
    return _entry("VmRSS")


def anonymous() -> int:
    """Bytes resident now that no file holds: what no other process shares and no kernel drops."""
    return _entry("RssAnon")


def _entry(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
