"""How far two cores are from each other: nanoseconds for a line of the cache to the other and back.

    python -m benchmarks.core_latency [--rounds 5]

About 50 where they share a cache, several times as much where they do not. A virtual machine can
change from one to the other while it runs, and with it the speed of every parallel program.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.mojo_file import output
from pretrained_models.comparison import positive_int

SOURCE = Path(__file__).with_suffix(".mojo")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="core_latency", description="How far cores are apart")
    parser.add_argument("--rounds", type=positive_int, default=5)
    rounds = parser.parse_args(arguments).rounds
    if os.cpu_count() == 1:
        raise SystemExit("core_latency needs two cores; this machine has one")
    for _ in range(rounds):
        print(f"{float(output(SOURCE)):.0f} ns", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
