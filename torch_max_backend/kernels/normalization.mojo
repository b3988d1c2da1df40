"""Layer normalisation (Ba et al., 2016) and RMS normalisation (Zhang and Sennrich, 2019) of rows.

A row stays in cache while it is gone through: for its mean, its variance and the result. Numbers
are computed in float32, float64 in float64.
"""

from std.math import sqrt
from std.memory import Pointer
from std.runtime import parallelism_level
from max.algorithm import sync_parallelize
from .rounding import rounded
from .tasks import Tasks, Turn
from .units import SUM, WIDTH

comptime SMALL = 1 << 16
"""Numbers that one worker goes through sooner than another wakes up."""

comptime WORKER_TASKS = 8
"""Tasks of each worker, at most, where a norm is part of something larger."""


@fieldwise_init
struct Factors[dtype: DType](Copyable, ImplicitlyCopyable, Movable):
    """A number per column, or one for all."""

    var data: Pointer[Scalar[Self.dtype], MutUntrackedOrigin]
    var single: Bool

    @always_inline
    def load[sum: DType, width: Int](self, column: Int) -> SIMD[sum, width]:
        if self.single:
            return SIMD[sum, width](self.data[].cast[sum]())
        return self.data.unsafe_load[width=width, alignment=2](column).cast[sum]()


@fieldwise_init
struct Rows[dtype: DType](Copyable, ImplicitlyCopyable, Movable):
    """A dense (rows, columns) matrix and where its normalisation goes."""

    var source: Pointer[Scalar[Self.dtype], MutUntrackedOrigin]
    var target: Pointer[Scalar[Self.dtype], MutUntrackedOrigin]
    var rows: Int
    var columns: Int


@fieldwise_init
struct Normalization[
    dtype: DType, gain_dtype: DType, shift_dtype: DType, centred: Bool
](Copyable, ImplicitlyCopyable, Movable):
    """Each row divided by its root mean square and times ``gain``; if ``centred``, less its mean
    before and plus ``shift`` after."""

    var rows: Rows[Self.dtype]
    var gain: Factors[Self.gain_dtype]
    var shift: Factors[Self.shift_dtype]
    var eps: Scalar[SUM[Self.dtype]]

    def of_rows(self, first: Int, last: Int):
        for r in range(first, last):
            _row[centred=Self.centred](
                self.rows, r * self.rows.columns, self.gain, self.shift, self.eps
            )

    def tasks(self, workers: Int) -> Tasks:
        """Some rows each."""
        return Tasks(min(self.rows.rows, WORKER_TASKS * workers), 1, workers)

    def share(self, tasks: Tasks, worker: Int):
        """A worker's share, and what it can take of others'."""
        var rows = self.rows.rows
        var turn = Turn(tasks, worker)
        while turn.next_task():
            self.of_rows(
                turn.task * rows // tasks.count, (turn.task + 1) * rows // tasks.count
            )

    def in_parallel(self):
        """All rows."""
        var workers = parallelism_level()
        var rows = self.rows.rows
        if rows * self.rows.columns <= SMALL:
            self.of_rows(0, rows)
            return

        def work(worker: Int) {self, rows, workers}:
            self.of_rows(worker * rows // workers, (worker + 1) * rows // workers)

        sync_parallelize(work, workers)


@always_inline
def _row[
    dtype: DType, gain_dtype: DType, shift_dtype: DType, //, centred: Bool
](
    rows: Rows[dtype],
    start: Int,
    gain: Factors[gain_dtype],
    shift: Factors[shift_dtype],
    eps: Scalar[SUM[dtype]],
):
    comptime sum = SUM[dtype]
    var source = rows.source.unsafe_offset(start)
    var target = rows.target.unsafe_offset(start)
    var mean = Scalar[sum](0)
    comptime if centred:
        mean = _total[squared=False](source, rows.columns, mean) / Scalar[sum](rows.columns)
    var square = _total[squared=True](source, rows.columns, mean) / Scalar[sum](rows.columns)
    var scale = 1 / sqrt(square + eps)
    var c = 0
    comptime for step in range(2):
        comptime width = WIDTH[dtype] if step == 0 else 1
        while c + width <= rows.columns:
            var x = (source.unsafe_load[width=width, alignment=2](c).cast[sum]() - mean) * scale
            x *= gain.load[sum, width](c)
            comptime if centred:
                x += shift.load[sum, width](c)
            target.unsafe_store[alignment=2](c, rounded[dtype](x))
            c += width


@always_inline
def _total[
    dtype: DType, //, squared: Bool
](
    source: Pointer[Scalar[dtype], MutUntrackedOrigin], columns: Int, mean: Scalar[SUM[dtype]]
) -> Scalar[SUM[dtype]]:
    """The sum of a row's numbers, or of the squares of what they are beyond the mean."""
    comptime sum = SUM[dtype]
    var total = Scalar[sum](0)
    var c = 0
    comptime for step in range(3):  # four registers at once, lest each addition wait for the last
        comptime width = [4 * WIDTH[dtype], WIDTH[dtype], 1][step]
        var part = SIMD[sum, width](0)
        while c + width <= columns:
            var x = source.unsafe_load[width=width, alignment=2](c).cast[sum]()
            comptime if squared:
                part = (x - mean).fma(x - mean, part)
            else:
                part += x
            c += width
        total += part.reduce_add()
    return total
