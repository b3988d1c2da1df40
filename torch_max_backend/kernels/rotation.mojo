"""Rotary position embedding (Su et al., 2021)."""

from std.memory import Pointer
from .rounding import rounded, widened
from .units import BytePointer, WIDTH

comptime Table = Pointer[Float32, MutUntrackedOrigin]


@fieldwise_init
struct Rotation(Copyable, ImplicitlyCopyable, Movable):
    """The angles of a (batch, heads, length, width) tensor's rows from ``first`` on: their sines
    and cosines as dense rows of width, strides in numbers, 0 where they are broadcast."""

    var sines: Table
    var cosines: Table
    var present: Bool
    var first: Int
    var batch: Int
    var head: Int

    def rotate[
        dtype: DType
    ](self, b: Int, h: Int, row: Int, width: Int, source: BytePointer, target: BytePointer):
        """Each pair (i, i + width / 2) of a row by its angle; rows before the first one as is."""
        var numbers = source.unsafe_bitcast[Scalar[dtype]]()
        var rotated = target.unsafe_bitcast[Scalar[dtype]]()
        if row < self.first:
            for i in range(width):
                rotated[unsafe_offset=i] = numbers[unsafe_offset=i]
            return
        var place = b * self.batch + h * self.head + (row - self.first) * width
        var sin = self.sines.unsafe_offset(place)
        var cos = self.cosines.unsafe_offset(place)
        var half = width // 2
        var i = 0
        while i + WIDTH[dtype] <= half:
            _rotate_pairs[dtype, WIDTH[dtype]](numbers, sin, cos, rotated, i, half)
            i += WIDTH[dtype]
        while i < half:
            _rotate_pairs[dtype, 1](numbers, sin, cos, rotated, i, half)
            i += 1


@always_inline
def _rotate_pairs[
    dtype: DType, count: Int
](
    numbers: Pointer[Scalar[dtype], MutUntrackedOrigin],
    sin: Table,
    cos: Table,
    rotated: Pointer[Scalar[dtype], MutUntrackedOrigin],
    i: Int,
    half: Int,
):
    """The pairs from (i, i + half) on."""
    var a = widened[count](numbers, i)
    var b = widened[count](numbers, i + half)
    var first = a * widened[count](cos, i) - b * widened[count](sin, i)
    var second = b * widened[count](cos, i + half) + a * widened[count](sin, i + half)
    rotated.unsafe_store[alignment=2](i, rounded[dtype](first))
    rotated.unsafe_store[alignment=2](i + half, rounded[dtype](second))
