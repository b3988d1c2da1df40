"""Softmax of a row of scores, in float32."""

from .functions import exponential
from .units import FloatPointer, Sums, UnitPointer, WIDTH

comptime MINUS_INFINITY = Float32.MIN


def softmax_row[
    dtype: DType
](
    scores: FloatPointer,
    keys: Int,
    padded: Int,
    scale: Float32,
    bias: FloatPointer,
    biased: Bool,
    weights: UnitPointer,
) -> Float32:
    """Writes exp(scores * scale + bias - maximum) as ``dtype`` numbers and returns what they are to
    be multiplied by: 1 / their sum, 0 where no key is kept. Those from ``keys`` to ``padded`` are 0.
    """
    for j in range(keys, padded):
        scores[unsafe_offset=j] = MINUS_INFINITY
    var top = Sums(MINUS_INFINITY)
    for j in range(0, padded, WIDTH):
        var x = scores.unsafe_load[width=WIDTH](j) * scale
        if biased:
            if j + WIDTH <= keys:
                x += bias.unsafe_load[width=WIDTH, alignment=4](j)
            else:
                for i in range(keys - j):
                    x[i] += bias[unsafe_offset=j + i]
        scores.unsafe_store(j, x)
        top = max(top, x)
    var maximum = top.reduce_max()
    if maximum == MINUS_INFINITY:
        maximum = 0
    var total = Sums(0)
    var target = weights.unsafe_bitcast[Scalar[dtype]]()
    for j in range(0, padded, WIDTH):
        var e = exponential(scores.unsafe_load[width=WIDTH](j) - maximum)
        total += e
        target.unsafe_store(j, e.cast[dtype]())
    var sum = total.reduce_add()
    return 0 if sum == 0 else 1 / sum
