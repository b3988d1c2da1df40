"""How far two cores are from each other: nanoseconds for a line of the cache to the other and back.

    python -m benchmarks.core_latency

About 50 where they share a cache, several times as much where they do not. A virtual machine can
change from one to the other while it runs, and with it the speed of every parallel program.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.mojo_file import output

SOURCE = Path(__file__).with_suffix(".mojo")


def main() -> int:
    if os.cpu_count() == 1:
        raise SystemExit("core_latency needs two cores; this machine has one")
    print(f"{float(output(SOURCE)):.0f} ns")
    return 0


if __name__ == "__main__":
    sys.exit(main())
