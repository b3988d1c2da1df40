"""What processors can do: this machine's, and those that code can be made for by name."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

NATIVE = "native"
_X86_64 = {
    "x86-64": "cx8 fxsr mmx sse sse2",
    "x86-64-v2": "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3",
    "x86-64-v3": "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "x86-64-v4": "avx512bw avx512cd avx512dq avx512f avx512vl",
}
"""What each level adds to the one before, in Linux's names (System V ABI for AMD64, 3.1.1)."""
_target: ContextVar[str] = ContextVar("cpu_target", default=NATIVE)


@cache
def cpu_features() -> str:
    """The features of this machine's CPU, sorted (Linux), else its name."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", info, re.MULTILINE)
    return " ".join(sorted(match.group(1).split())) if match else platform.processor()


def cpu_levels() -> dict[str, frozenset[str]]:
    """The processors that code can be made for on this machine, with the features they ask for."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {"generic": frozenset()}
    levels: dict[str, frozenset[str]] = {}
    features: frozenset[str] = frozenset()
    for name, added in _X86_64.items():
        features = levels[name] = features | set(added.split())
    return levels


def system() -> str:
    """Operating system and kind of processor, which an executable is for."""
    return f"{platform.system()} {platform.machine()}"


@contextmanager
def making_code_for(cpu: str) -> Iterator[None]:
    """Within, this thread compiles for that processor: ``"native"`` or one of ``cpu_levels``."""
    token = _target.set(cpu)
    try:
        yield
    finally:
        _target.reset(token)


def cpu_target() -> str:
    """The processor that this thread compiles for."""
    return _target.get()


def target_features() -> frozenset[str]:
    """What code made now may rely on, of what programs are compiled to."""
    if (cpu := _target.get()) != NATIVE:
        return cpu_levels()[cpu]
    return frozenset(name for name in cpu_features().split() if _INSTRUCTION_SETS.match(name))


def rounds_to_bfloat16() -> bool:
    """Whether the processor that this thread compiles for has an instruction for it."""
    return not target_features().isdisjoint(("avx512_bf16", "bf16"))


_INSTRUCTION_SETS = re.compile(
    r"(sse|ssse|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|aes|vaes|pclmul|vpclmul|sha|gfni|adx|cx16"
    r"|neon|asimd|sve|sme|bf16|i8mm|fphp|dotprod|crc32|atomics)"
)
