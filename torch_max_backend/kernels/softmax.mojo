"""Softmax of a row of scores, in float32."""

from std.math import iota
from std.memory import Pointer
from .functions import LOG2_E, power_of_two
from .rounding import rounded
from .units import *


def softmax_row[
    dtype: DType
](
    scores: SumPointer[dtype],
    keys: Int,
    padded: Int,
    scale: Scalar[SUM[dtype]],
    bias: SumPointer[dtype],
    biased: Bool,
    empty: Scalar[SUM[dtype]],
    weights: UnitPointer[dtype],
) -> Scalar[SUM[dtype]]:
    """Writes exp(scores * scale + bias - maximum) in lines, as ``dtype`` numbers where those are
    multiplied whole, zeros from ``keys`` to ``padded``, and returns what they are to be multiplied
    by: 1 / their sum, ``empty`` where no key is kept.
    """
    comptime width = WIDTH[dtype]
    comptime MINUS_INFINITY = Scalar[SUM[dtype]].MIN
    var top = Sums[dtype](MINUS_INFINITY)
    for j in range(0, padded, width):
        var x = scores.unsafe_load[width=width](j) * scale
        if biased:
            x += _row_of[width](bias, j, keys)
        if j + width > keys:
            x = iota[DType.int32, width](Int32(j)).lt(Int32(keys)).select(x, MINUS_INFINITY)
        scores.unsafe_store(j, x)
        top = x.gt(top).select(x, top)  # passes over NaN in one instruction
    var maximum = top.reduce_max()
    if maximum == MINUS_INFINITY:
        maximum = 0
    var total = Sums[dtype](0)
    var lines = weights.unsafe_bitcast[Scalar[SUM[dtype]]]()
    for j in range(0, padded, width):
        var x = rebind[SIMD[DType.float32, width]](scores.unsafe_load[width=width](j) - maximum)
        var e = rebind[Sums[dtype]](power_of_two[dtype](x * LOG2_E))
        total += e
        comptime if PARTS[dtype] == 1:
            weights.unsafe_bitcast[Scalar[dtype]]().unsafe_store(j, rounded[dtype](e))
        else:
            lines.unsafe_store(j, e)  # rounded to ``dtype`` it would only lose digits
    var sum = total.reduce_add()
    return empty if sum == 0 else 1 / sum


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
