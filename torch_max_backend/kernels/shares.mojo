"""Rows that need about the same time each, in as many shares as there are workers."""

from std.runtime import parallelism_level
from max.algorithm import sync_parallelize


def in_shares[Work: def(Int, Int) -> None](rows: Int, small: Bool, work: Work):
    """``work`` on rows first..last of each share; on all of them here where that takes less than
    to wake others."""
    var workers = 1 if small else parallelism_level()

    def share(worker: Int) {rows, workers, imm work}:
        work(worker * rows // workers, (worker + 1) * rows // workers)

    if workers == 1:
        share(0)
    else:
        sync_parallelize(share, workers)
