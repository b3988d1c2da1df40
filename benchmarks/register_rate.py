"""What the processor's arithmetic units do at most: the limit of every matrix product.

    python -m benchmarks.register_rate

Prints for each type that the processor multiplies whole how many billion operations a second
(multiplications and additions) all cores do on numbers in registers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tabulate import tabulate

from benchmarks.mojo_file import output

SOURCE = Path(__file__).with_suffix(".mojo")


def rates() -> dict[str, float]:
    """GFLOP/s (int8: billions of integer operations a second) by type."""
    return {name: float(rate) for name, rate in map(str.split, output(SOURCE).splitlines())}


def main() -> int:
    found = [(name, f"{rate:.0f}") for name, rate in rates().items()]
    print(tabulate(found, ["type", "GFLOP/s"], disable_numparse=True, colalign=("left", "right")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
