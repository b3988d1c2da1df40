"""Softmax of rows of scores, in float32."""

from std.math import iota
from std.memory import Pointer
from .functions import LOG2_E, power_of_two
from .rounding import rounded
from .units import *


def softmax_rows[
    dtype: DType
](
    scores: SumPointer[dtype],
    stride: Int,
    kept: Array[Int, ROWS],
    padded: Int,
    scale: Scalar[SUM[dtype]],
    biases: Array[SumPointer[dtype], ROWS],
    biased: Bool,
    empty: Scalar[SUM[dtype]],
    weights: UnitPointer[dtype],
    places: Int,
) -> Array[Scalar[SUM[dtype]], ROWS]:
    """Writes exp(scores * scale + bias - maximum) of each row in ``places`` lines, as ``dtype``
    numbers where those are multiplied whole, zeros from as many keys on as it keeps to ``padded``.
    Returns what they are to be multiplied by: 1 / their sum, ``empty`` where no key is kept.

    The rows go side by side, lest each wait for the largest number and the sum of the one before.
    Scores without a bias are scaled once their maximum is taken off, which is that of the scaled ones
    too where the scale is positive.
    """
    comptime width = WIDTH[dtype]
    comptime Vector = SIMD[DType.float32, width]
    comptime MINUS_INFINITY = Scalar[SUM[dtype]].MIN
    var early = biased or scale <= 0
    var tops = Array[Sums[dtype], ROWS](fill=Sums[dtype](MINUS_INFINITY))
    for j in range(0, padded, width):
        comptime for i in range(ROWS):
            var row = scores.unsafe_offset(i * stride)
            var x = row.unsafe_load[width=width](j)
            if early:
                x *= scale
                if biased:
                    x += _row_of[width](biases[i], j, kept[i])
                row.unsafe_store(j, x)
            x = _kept(x, j, kept[i], MINUS_INFINITY)
            tops[i] = x.gt(tops[i]).select(x, tops[i])  # passes over NaN in one instruction
    var factor = Vector(rebind[Float32](1 if early else scale) * LOG2_E)
    var maxima = Array[Vector, ROWS](uninitialized=True)
    comptime for i in range(ROWS):
        var maximum = rebind[Float32](tops[i].reduce_max())
        maxima[i] = Vector(0 if maximum == Float32.MIN else maximum)
    var totals = Array[Sums[dtype], ROWS](fill=Sums[dtype](0))
    for j in range(0, padded, width):
        comptime for i in range(ROWS):
            var x = rebind[Vector](scores.unsafe_offset(i * stride).unsafe_load[width=width](j))
            var e = rebind[Sums[dtype]](power_of_two[dtype]((x - maxima[i]) * factor))
            e = _kept(e, j, kept[i], 0)
            totals[i] += e
            var line = weights.unsafe_offset(i * places)
            comptime if PARTS[dtype] == 1:
                line.unsafe_bitcast[Scalar[dtype]]().unsafe_store(j, rounded[dtype](e))
            else:  # rounded to ``dtype`` it would only lose digits
                line.unsafe_bitcast[Scalar[SUM[dtype]]]().unsafe_store(j, e)
    var factors = Array[Scalar[SUM[dtype]], ROWS](uninitialized=True)
    comptime for i in range(ROWS):
        var sum = totals[i].reduce_add()
        factors[i] = empty if sum == 0 else 1 / sum
    return factors^


@always_inline
def _kept[
    dtype: DType, width: Int, //
](x: SIMD[dtype, width], j: Int, columns: Int, other: Scalar[dtype]) -> SIMD[dtype, width]:
    """A vector of a row from j on, another number beyond its end."""
    if j + width <= columns:
        return x
    return iota[DType.int32, width](Int32(j)).lt(Int32(columns)).select(
        x, SIMD[dtype, width](other)
    )


@always_inline
def _row_of[
    dtype: DType, //, width: Int
](row: Pointer[Scalar[dtype], MutUntrackedOrigin], j: Int, columns: Int) -> SIMD[dtype, width]:
    """A vector of a row from j on, zeros beyond its end."""
    if j + width <= columns:
        return row.unsafe_load[width=width, alignment = size_of[dtype]()](j)
    var x = SIMD[dtype, width](0)
    for i in range(columns - j):
        x[i] = row[unsafe_offset=j + i]
    return x
