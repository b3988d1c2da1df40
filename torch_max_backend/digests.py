"""The hashes that keys are made of: hexadecimal SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch


def digest_of(*parts: str | Sequence[str]) -> str:
    """Of strings and lists of strings, one after the other."""
    lines: list[str] = []
    for part in parts:
        lines.extend([part] if isinstance(part, str) else part)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tensor_digest(tensor: torch.Tensor) -> str:
    """Of a tensor's numbers, in the order of its axes."""
    numbers = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def sources_digest(folder: Path) -> str:
    """Of the Python and Mojo sources below a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".mojo", ".mojoc")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
