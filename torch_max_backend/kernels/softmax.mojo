"""Softmax of a row of scores, in float32."""

from .functions import exponential
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
    for j in range(keys, padded):
        scores[unsafe_offset=j] = MINUS_INFINITY
    var top = Sums[dtype](MINUS_INFINITY)
    for j in range(0, padded, width):
        var x = scores.unsafe_load[width=width](j) * scale
        if biased:
            if j + width <= keys:
                x += bias.unsafe_load[width=width, alignment=4](j)
            else:
                for i in range(keys - j):
                    x[i] += bias[unsafe_offset=j + i]
        scores.unsafe_store(j, x)
        top = max(top, x)
    var maximum = top.reduce_max()
    if maximum == MINUS_INFINITY:
        maximum = 0
    var total = Sums[dtype](0)
    var lines = weights.unsafe_bitcast[Scalar[SUM[dtype]]]()
    for j in range(0, padded, width):
        var x = scores.unsafe_load[width=width](j) - maximum
        var e = rebind[Sums[dtype]](exponential(rebind[SIMD[DType.float32, width]](x)))
        total += e
        comptime if PARTS[dtype] == 1:
            weights.unsafe_bitcast[Scalar[dtype]]().unsafe_store(j, rounded[dtype](e))
        else:
            lines.unsafe_store(j, e)  # rounded to ``dtype`` it would only lose digits
    var sum = total.reduce_add()
    return empty if sum == 0 else 1 / sum
