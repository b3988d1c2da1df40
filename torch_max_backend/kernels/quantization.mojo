"""Rows of numbers as int8 with a scale each, so that the largest of a row becomes 127 or 128."""

from std.memory import Pointer
from std.memory.alloc import unsafe_alloc
from std.utils.numerics import nan
from .functions import activate
from .normalization import SMALL
from .rounding import rounded
from .shares import in_shares
from .units import WIDTH


@fieldwise_init
struct QuantizedRows[dtype: DType](Copyable, ImplicitlyCopyable, Movable):
    """A dense (rows, columns) matrix, where its int8 numbers and the scales of its rows go."""

    var source: Pointer[Scalar[Self.dtype], MutUntrackedOrigin]
    var target: Pointer[Int8, MutUntrackedOrigin]
    var scales: Pointer[Float32, MutUntrackedOrigin]
    var rows: Int
    var columns: Int


def quantize_rows[
    dtype: DType, activation: StaticString
](call: QuantizedRows[dtype], divisor: Float32, eps: Float32):
    """A row's scale is its largest magnitude over ``divisor``, rounded to ``dtype``, at least
    ``eps``; its numbers, after the activation, are divided by it and rounded to even."""

    def work(first: Int, last: Int) {call, divisor, eps}:
        var row = unsafe_alloc[Float32](call.columns)
        for r in range(first, last):
            var source = call.source.unsafe_offset(r * call.columns)
            var magnitude = _activate[activation](source, row, call.columns)
            var scale = rounded[dtype, 1](magnitude / divisor).cast[DType.float32]()
            scale = scale.lt(eps).select(eps, scale)
            call.scales[unsafe_offset=r] = scale
            _quantize(row, 1 / scale, call.target.unsafe_offset(r * call.columns), call.columns)
        row.unsafe_free()

    in_shares(call.rows, call.rows * call.columns <= SMALL, work)


@always_inline
def _activate[
    dtype: DType, //, activation: StaticString
](
    source: Pointer[Scalar[dtype], MutUntrackedOrigin],
    target: Pointer[Float32, MutUntrackedOrigin],
    columns: Int,
) -> Float32:
    """A row after the activation, as float32 rounded to its dtype; returns the largest absolute
    value, NaN where there is one."""
    var largest = Float32(0)
    var odd = False
    var c = 0
    comptime for step in range(3):  # several registers at once, lest each wait for the last
        comptime width = [4 * WIDTH[dtype], WIDTH[dtype], 1][step]
        var part = SIMD[DType.float32, width](0)
        var nans = SIMD[DType.bool, width](fill=False)
        while c + width <= columns:
            var x = source.unsafe_load[width=width, alignment=2](c).cast[DType.float32]()
            x = rounded[dtype](activate[activation, dtype](x)).cast[DType.float32]()
            target.unsafe_store(c, x)
            part = abs(x).gt(part).select(abs(x), part)
            nans |= x.ne(x)
            c += width
        largest = max(largest, part.reduce_max())
        odd = odd or nans.reduce_or()
    return nan[DType.float32]() if odd else largest


@always_inline
def _quantize(
    source: Pointer[Float32, MutUntrackedOrigin],
    factor: Float32,
    target: Pointer[Int8, MutUntrackedOrigin],
    columns: Int,
):
    var c = 0
    comptime for step in range(2):
        comptime width = WIDTH[DType.float32] if step == 0 else 1
        comptime Vector = SIMD[DType.float32, width]
        while c + width <= columns:
            var x = source.unsafe_load[width=width](c) * factor
            x = x.ne(x).select(Vector(0), x)  # no int8 is NaN
            x = min(max(x.__round__(), Vector(-128)), Vector(127))
            target.unsafe_store[alignment=1](c, x.cast[DType.int8]())
            c += width
