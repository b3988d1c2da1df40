"""What changes of the source brought: revisions of this repository beside each other.

    python -m benchmarks.revisions REVISION [REVISION ...] [--model vit-s] [--batch 8]
                                   [--dtype float32] [--contestant max] [--rounds 10]

Run it in a clone. Each revision is written to a temporary folder, compiles the model with caches of
its own, which are empty, and is then called by turns with the others, each in a process of its own:
while a machine is quiet two processes of one revision differ by 3 %. Prints quantiles of the times
in milliseconds, and how much faster than the first each is. The oldest that can take part is
341b483, the first with this benchmark's cases. Exits with 1 where a process fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import by_turns
from benchmarks.cases import DTYPES, MODELS
from benchmarks.environment import caches_below
from pretrained_models.comparison import positive_int, progress

SECONDS_A_TURN = 1.0
SECONDS_BETWEEN_TURNS = 0.5
"""Workers of revisions before 9cd46e9 look for work for as long as MAX's own default, 0.2 s."""
CHILD = Path(__file__).with_name("revision.py")


class Revision:
    """A revision's process; commands raise RuntimeError."""

    def __init__(self, name: str, tree: Path, arguments: Sequence[str]) -> None:
        self.name = name
        environment = {
            **os.environ,
            **caches_below(tree / "cache"),
            "PYTHONPATH": str(tree),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD), *arguments],  # -P: benchmarks/ is no import path
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready: dict[str, float] = self._answer()
        """Seconds to the first result, the largest difference from eager float32."""

    def __enter__(self) -> Revision:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, count: int) -> list[float]:
        """Seconds of each of some calls."""
        assert self._process.stdin is not None
        print(count, file=self._process.stdin, flush=True)
        return self._answer()["times"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"'):
                return json.loads(line)
        raise RuntimeError(f"{self.name}: the process ended with {self._process.wait()}")


def write_tree(revision: str, folder: Path) -> None:
    """The files of a revision into a new folder.

    Raises:
        ValueError: the repository around this file has no such revision.
    """
    folder.mkdir(parents=True)
    here = Path(__file__).parent
    archive = ["git", "archive", revision, "--format=tar"]
    files = subprocess.run(archive, cwd=here.parent, capture_output=True)
    if files.returncode:
        raise ValueError(f"no revision {revision!r} here: {files.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=files.stdout, check=True)


def in_turns(revisions: Sequence[Revision], rounds: int) -> list[list[float]]:
    """Seconds of each call."""
    times: list[list[float]] = [[] for _ in revisions]
    count = max(2, round(SECONDS_A_TURN / min(revisions[0].run(3))))
    for place in by_turns.turns(len(revisions), rounds):
        time.sleep(SECONDS_BETWEEN_TURNS)
        times[place] += revisions[place].run(count)
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="revisions", description="Revisions beside each other")
    parser.add_argument("revisions", nargs="+")
    parser.add_argument("--model", choices=list(MODELS), default="vit-s")
    parser.add_argument("--batch", type=positive_int, default=8)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--contestant", default="max")
    parser.add_argument("--rounds", type=positive_int, default=10)
    args = parser.parse_args(arguments)
    case = [args.contestant, args.model, str(args.batch), args.dtype]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        found = []
        try:
            trees = [Path(temporary) / str(place) for place in range(len(args.revisions))]
            for name, tree in zip(args.revisions, trees, strict=True):
                write_tree(name, tree)
            for name, tree in zip(args.revisions, trees, strict=True):
                found.append(stack.enter_context(Revision(name, tree, case)))
                progress(
                    f"{name}: first result after {found[-1].ready['seconds']:.1f} s, largest "
                    f"difference from eager float32 {found[-1].ready['error']:.1e}"
                )
            times = in_turns(found, args.rounds)
        except (RuntimeError, ValueError) as error:
            progress(str(error))
            return 1
    print(by_turns.table(args.revisions, times, "revision"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
