"""Products of units: one float64, one float32, a pair of bfloat16 or four int8 numbers.

Both operands of a matrix product are read in such units, so that one kernel serves all types. Sums
of bfloat16 are float32, those of int8 int32. The sizes of a tile keep its sums in registers: 24 of
the 32 that AVX-512 and Arm have, 12 of the 16 of AVX2.
"""

from std.math import ceildiv
from std.memory import Pointer, bitcast
from std.sys import CompilationTarget, llvm_intrinsic, simd_width_of, size_of

comptime ROWS = 6
"""Rows of a tile."""
comptime VECTORS = 2 if simd_width_of[DType.float32]() == 8 else 4
"""Vectors in a row of a tile."""

comptime UNIT[dtype: DType] = DType.int64 if dtype == DType.float64 else DType.int32
comptime SUM[dtype: DType] = (
    DType.float64 if dtype == DType.float64 else DType.int32 if dtype == DType.int8 else DType.float32
)
comptime WIDTH[dtype: DType] = simd_width_of[SUM[dtype]]()
"""Units in a vector register."""
comptime Units[dtype: DType] = SIMD[UNIT[dtype], WIDTH[dtype]]
comptime Sums[dtype: DType] = SIMD[SUM[dtype], WIDTH[dtype]]
comptime UnitPointer[dtype: DType] = Pointer[Scalar[UNIT[dtype]], MutUntrackedOrigin]
comptime SumPointer[dtype: DType] = Pointer[Scalar[SUM[dtype]], MutUntrackedOrigin]
comptime BytePointer = Pointer[UInt8, MutUntrackedOrigin]


def units_of[dtype: DType](count: Int) -> Int:
    """The units that hold some numbers, the last one padded."""
    return ceildiv(count * size_of[dtype](), size_of[UNIT[dtype]]())


comptime SIGNS: Int32 = -0x7F7F7F80
"""The sign bits of four int8 numbers; without them, the number 128 four times."""


@always_inline
def left_units[dtype: DType](a: Scalar[UNIT[dtype]]) -> Units[dtype]:
    """What multiply_add takes on its left: processors multiply unsigned by signed bytes, so 128 is
    added to an int8. Whoever sums up takes ``excess`` off again."""
    comptime if dtype == DType.int8:
        return Units[dtype](a ^ rebind[Scalar[UNIT[dtype]]](SIGNS))
    else:
        return Units[dtype](a)


@always_inline
def excess[dtype: DType](sums: Sums[dtype], b: Units[dtype]) -> Sums[dtype]:
    """What int8 units on the right add to the sums because 128 was added to those on the left."""
    return multiply_add[dtype](sums, Units[dtype](rebind[Scalar[UNIT[dtype]]](SIGNS)), b)


@always_inline
def multiply_add[
    dtype: DType
](sums: Sums[dtype], a: Units[dtype], b: Units[dtype]) -> Sums[dtype]:
    """A lane's sum grows by the products of the numbers in its units; see ``left_units``."""
    comptime width = WIDTH[dtype]
    comptime if dtype == DType.int8:
        return rebind[Sums[dtype]](
            _multiply_add_bytes[width](
                bitcast[DType.int32, width](sums),
                bitcast[DType.int32, width](a),
                bitcast[DType.int32, width](b),
            )
        )
    elif dtype != DType.bfloat16:
        return bitcast[SUM[dtype], width](a).fma(bitcast[SUM[dtype], width](b), sums)
    elif width == 16 and CompilationTarget._has_feature["avx512bf16"]():
        return llvm_intrinsic[
            "llvm.x86.avx512bf16.dpbf16ps.512", Sums[dtype], has_side_effect=False
        ](sums, bitcast[DType.bfloat16, 2 * width](a), bitcast[DType.bfloat16, 2 * width](b))
    else:  # the high half of a float32 is the bfloat16 of the same value
        comptime HIGH = Units[dtype](-65536)
        var even = bitcast[SUM[dtype], width](a << 16).fma(
            bitcast[SUM[dtype], width](b << 16), sums
        )
        return bitcast[SUM[dtype], width](a & HIGH).fma(bitcast[SUM[dtype], width](b & HIGH), even)


@always_inline
def _multiply_add_bytes[
    width: Int
](
    sums: SIMD[DType.int32, width], a: SIMD[DType.int32, width], b: SIMD[DType.int32, width]
) -> SIMD[DType.int32, width]:
    """Four unsigned bytes times four signed ones."""
    comptime Vector = SIMD[DType.int32, width]
    comptime if width == 16 and CompilationTarget._has_feature["avx512vnni"]():
        return llvm_intrinsic["llvm.x86.avx512.vpdpbusd.512", Vector, has_side_effect=False](
            sums, bitcast[DType.int8, 4 * width](a), bitcast[DType.int8, 4 * width](b)
        )
    elif width == 8 and CompilationTarget._has_feature["avxvnni"]():
        return llvm_intrinsic["llvm.x86.avx512.vpdpbusd.256", Vector, has_side_effect=False](
            sums, bitcast[DType.int8, 4 * width](a), bitcast[DType.int8, 4 * width](b)
        )
    else:
        var total = sums
        comptime for i in range(4):
            total += ((a >> Vector(8 * i)) & 255) * ((b << Vector(24 - 8 * i)) >> Vector(24))
        return total


@always_inline
def multiply_step[
    dtype: DType, rows: Int, vectors: Int
](
    mut sums: Array[Sums[dtype], rows * vectors],
    a: Array[Scalar[UNIT[dtype]], rows],
    b: UnitPointer[dtype],
):
    """One unit of each row times one row of vectors."""
    var right = Array[Units[dtype], vectors](uninitialized=True)
    comptime for j in range(vectors):
        right[j] = b.unsafe_load[width=WIDTH[dtype], alignment=4](WIDTH[dtype] * j)
    comptime for i in range(rows):
        var left = left_units[dtype](a[i])
        comptime for j in range(vectors):
            sums[i * vectors + j] = multiply_add[dtype](sums[i * vectors + j], left, right[j])


@always_inline
def unit_at[dtype: DType](row: BytePointer, unit: Int, columns: Int) -> Scalar[UNIT[dtype]]:
    """A unit of a row of numbers, zero filled where the row ends in its midst."""
    comptime size = size_of[UNIT[dtype]]()
    var present = columns * size_of[dtype]() - unit * size
    if present >= size:
        return row.unsafe_bitcast[Scalar[UNIT[dtype]]]().unsafe_load[alignment = size_of[dtype]()](
            unit
        )
    var numbers = Scalar[UNIT[dtype]](0)
    for i in range(present):
        numbers |= row[unsafe_offset=unit * size + i].cast[UNIT[dtype]]() << Scalar[UNIT[dtype]](8 * i)
    return numbers
