"""Layer normalisation (Ba et al., 2016) and RMS normalisation (Zhang and Sennrich, 2019) of rows.

A row stays in cache while it is gone through: for its mean, its variance and the result. Numbers
are computed in float32, float64 in float64.
"""

from std.math import sqrt
from std.memory import Pointer
from std.runtime import parallelism_level
from max.algorithm import sync_parallelize
from .units import SUM, WIDTH

comptime SMALL = 1 << 14
"""Numbers that one worker goes through sooner than others wake up."""


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


def normalize[
    dtype: DType, gain_dtype: DType, shift_dtype: DType, //, centred: Bool
](
    rows: Rows[dtype],
    gain: Factors[gain_dtype],
    shift: Factors[shift_dtype],
    eps: Scalar[SUM[dtype]],
):
    """Each row divided by its root mean square and times ``gain``; if ``centred``, less its mean
    before and plus ``shift`` after."""
    var workers = parallelism_level()
    if rows.rows * rows.columns <= SMALL:
        workers = 1

    def work(worker: Int) {rows, gain, shift, eps, workers}:
        for r in range(worker * rows.rows // workers, (worker + 1) * rows.rows // workers):
            _row[centred=centred](rows, r * rows.columns, gain, shift, eps)

    if workers == 1:
        work(0)
    else:
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
    comptime width = WIDTH[dtype]
    var source = rows.source.unsafe_offset(start)
    var target = rows.target.unsafe_offset(start)
    var whole = rows.columns // width * width
    var mean = Scalar[sum](0)
    comptime if centred:
        var total = SIMD[sum, width](0)
        for c in range(0, whole, width):
            total += source.unsafe_load[width=width, alignment=2](c).cast[sum]()
        mean = total.reduce_add()
        for c in range(whole, rows.columns):
            mean += source[unsafe_offset=c].cast[sum]()
        mean /= Scalar[sum](rows.columns)
    var squares = SIMD[sum, width](0)
    for c in range(0, whole, width):
        var x = source.unsafe_load[width=width, alignment=2](c).cast[sum]() - mean
        squares = x.fma(x, squares)
    var square = squares.reduce_add()
    for c in range(whole, rows.columns):
        var x = source[unsafe_offset=c].cast[sum]() - mean
        square += x * x
    var scale = 1 / sqrt(square / Scalar[sum](rows.columns) + eps)
    for c in range(0, whole, width):
        var x = (source.unsafe_load[width=width, alignment=2](c).cast[sum]() - mean) * scale
        x *= gain.load[sum, width](c)
        comptime if centred:
            x += shift.load[sum, width](c)
        target.unsafe_store[alignment=2](c, x.cast[dtype]())
    for c in range(whole, rows.columns):
        var x = (source[unsafe_offset=c].cast[sum]() - mean) * scale * gain.load[sum, 1](c)
        comptime if centred:
            x += shift.load[sum, 1](c)
        target[unsafe_offset=c] = x.cast[dtype]()
