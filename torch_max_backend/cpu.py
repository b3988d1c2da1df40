"""What this machine's processor can do."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path


@cache
def cpu_features() -> str:
    """The instruction sets of this CPU, sorted (Linux), else its name."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", info, re.MULTILINE)
    return " ".join(sorted(match.group(1).split())) if match else platform.processor()


def multiplies_bfloat16() -> bool:
    """Whether our kernels multiply bfloat16 faster than float32: by AVX512-BF16."""
    return "avx512_bf16" in cpu_features().split()


_INSTRUCTION_SETS = re.compile(
    r"(sse|ssse|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|aes|vaes|pclmul|vpclmul|sha|gfni|adx|cx16"
    r"|neon|asimd|sve|sme|bf16|i8mm|fphp|dotprod|crc32|atomics)"
)


def instruction_sets() -> set[str]:
    """Of the features those that code may be compiled to."""
    return {name for name in cpu_features().split() if _INSTRUCTION_SETS.match(name)}
