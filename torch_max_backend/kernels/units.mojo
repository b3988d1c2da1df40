"""Products of units: one float64, one float32, a pair of bfloat16 or four int8 numbers.

Both operands of a matrix product are read in such units, so that one kernel serves all types. Where
the processor does not multiply a unit whole, packing splits it into lines of wider numbers. Sums of
bfloat16 are float32, those of int8 int32. The sizes of a tile keep its sums in registers: 24 of
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


def _multiplies_whole[dtype: DType]() -> Bool:
    """Whether the processor multiplies the numbers of a unit and sums up in one instruction."""
    comptime if dtype == DType.bfloat16:
        return WIDTH[dtype] == 16 and CompilationTarget._has_feature["avx512bf16"]()
    elif dtype == DType.int8:
        comptime if WIDTH[dtype] == 16:
            return CompilationTarget._has_feature["avx512vnni"]()
        return WIDTH[dtype] == 8 and CompilationTarget._has_feature["avxvnni"]()
    else:
        return True


comptime PARTS[dtype: DType] = 1 if _multiplies_whole[dtype]() else 2
"""Into how many lines a unit is split to be multiplied: of bfloat16 into its first and its second
number as float32, of int8 into its even and its odd ones as int16."""


def lines_of[dtype: DType](count: Int) -> Int:
    """The lines that hold some numbers."""
    return units_of[dtype](count) * PARTS[dtype]


@always_inline
def left_part[
    dtype: DType, part: Int, width: Int
](a: SIMD[UNIT[dtype], width]) -> SIMD[UNIT[dtype], width]:
    """What ``multiply_add_part`` takes on its left: 128 is added to an int8, since processors
    multiply unsigned by signed bytes. Whoever sums up takes ``excess`` off again."""
    comptime if dtype == DType.int8:
        comptime Vector = SIMD[UNIT[dtype], width]
        comptime SIGNS = Vector(-0x7F7F7F80)  # without them, the number 128 four times
        comptime if PARTS[dtype] == 1:
            return a ^ SIGNS
        return ((a ^ SIGNS) >> Vector(8 * part)) & Vector(0x00FF00FF)
    else:
        return right_part[dtype, part](a)


@always_inline
def right_part[
    dtype: DType, part: Int, width: Int
](b: SIMD[UNIT[dtype], width]) -> SIMD[UNIT[dtype], width]:
    """What ``multiply_add_part`` takes on its right."""
    comptime if PARTS[dtype] == 1:
        return b
    elif dtype == DType.int8:
        comptime Bytes = SIMD[DType.int16, 2 * width]
        var numbers = bitcast[DType.int16, 2 * width](b)
        comptime if part == 0:
            numbers <<= Bytes(8)
        return bitcast[UNIT[dtype], width](numbers >> Bytes(8))
    elif part == 0:  # the high half of a float32 is the bfloat16 of the same value
        return b << 16
    else:
        return b & -65536


@always_inline
def multiply_add_part[
    dtype: DType
](sums: Sums[dtype], a: Units[dtype], b: Units[dtype]) -> Sums[dtype]:
    """A lane's sum grows by the products of the numbers in its part of a unit."""
    comptime width = WIDTH[dtype]
    comptime if dtype == DType.int8:
        return rebind[Sums[dtype]](
            _multiply_add_integers[PARTS[dtype], width](
                bitcast[DType.int32, width](sums),
                bitcast[DType.int32, width](a),
                bitcast[DType.int32, width](b),
            )
        )
    elif dtype == DType.bfloat16 and PARTS[dtype] == 1:
        return llvm_intrinsic[
            "llvm.x86.avx512bf16.dpbf16ps.512", Sums[dtype], has_side_effect=False
        ](sums, bitcast[DType.bfloat16, 2 * width](a), bitcast[DType.bfloat16, 2 * width](b))
    else:
        return bitcast[SUM[dtype], width](a).fma(bitcast[SUM[dtype], width](b), sums)


@always_inline
def _multiply_add_integers[
    parts: Int, width: Int
](
    sums: SIMD[DType.int32, width], a: SIMD[DType.int32, width], b: SIMD[DType.int32, width]
) -> SIMD[DType.int32, width]:
    """Four unsigned bytes times four signed ones or, in two parts, two int16 times two."""
    comptime Vector = SIMD[DType.int32, width]
    comptime if parts == 1:
        comptime BITS = "512" if width == 16 else "256"
        return llvm_intrinsic[
            "llvm.x86.avx512.vpdpbusd." + BITS, Vector, has_side_effect=False
        ](sums, bitcast[DType.int8, 4 * width](a), bitcast[DType.int8, 4 * width](b))
    elif width == 8 and CompilationTarget._has_feature["avx2"]():
        return sums + llvm_intrinsic["llvm.x86.avx2.pmadd.wd", Vector, has_side_effect=False](
            bitcast[DType.int16, 2 * width](a), bitcast[DType.int16, 2 * width](b)
        )
    elif width == 16 and CompilationTarget._has_feature["avx512bw"]():
        return sums + llvm_intrinsic["llvm.x86.avx512.pmaddw.d.512", Vector, has_side_effect=False](
            bitcast[DType.int16, 2 * width](a), bitcast[DType.int16, 2 * width](b)
        )
    else:
        var low = ((a << Vector(16)) >> Vector(16)) * ((b << Vector(16)) >> Vector(16))
        return sums + low + (a >> Vector(16)) * (b >> Vector(16))


@always_inline
def excess[dtype: DType](sums: Sums[dtype], b: Units[dtype]) -> Sums[dtype]:
    """What a part of int8 units on the right adds to the sums because 128 was added to those on
    the left."""
    return multiply_add_part[dtype](sums, left_part[dtype, 0, WIDTH[dtype]](0), b)


@always_inline
def multiply_add[
    dtype: DType
](sums: Sums[dtype], a: Units[dtype], b: Units[dtype]) -> Sums[dtype]:
    """A lane's sum grows by the products of the numbers in its units."""
    var total = sums
    comptime for part in range(PARTS[dtype]):
        total = multiply_add_part[dtype](
            total, left_part[dtype, part, WIDTH[dtype]](a), right_part[dtype, part, WIDTH[dtype]](b)
        )
    return total


@always_inline
def multiply_step[
    dtype: DType, rows: Int, vectors: Int
](
    mut sums: Array[Sums[dtype], rows * vectors],
    a: Array[Scalar[UNIT[dtype]], rows],
    b: UnitPointer[dtype],
):
    """A line of each row, a unit where units are not split, times one line of vectors."""
    var right = Array[Units[dtype], vectors](uninitialized=True)
    comptime for j in range(vectors):
        right[j] = b.unsafe_load[width=WIDTH[dtype], alignment=4](WIDTH[dtype] * j)
    comptime for i in range(rows):
        var left = Units[dtype](a[i])
        comptime if PARTS[dtype] == 1:
            left = left_part[dtype, 0, WIDTH[dtype]](left)
        comptime for j in range(vectors):
            var place = i * vectors + j
            sums[place] = multiply_add_part[dtype](sums[place], left, right[j])


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
