"""Products of 32-bit units: one float32 or a pair of bfloat16 numbers.

Both operands of a matrix product are read in such units, so that one kernel serves both types. Sums
are float32. The sizes of a tile keep its sums in registers: 24 of the 32 that AVX-512 and Arm have,
12 of the 16 of AVX2.
"""

from std.math import ceildiv
from std.memory import Pointer, bitcast
from std.sys import CompilationTarget, llvm_intrinsic, simd_width_of, size_of

comptime WIDTH = simd_width_of[DType.float32]()
"""Units in a vector register."""
comptime ROWS = 6
"""Rows of a tile."""
comptime VECTORS = 2 if WIDTH == 8 else 4
"""Vectors in a row of a tile."""

comptime Units = SIMD[DType.int32, WIDTH]
comptime Sums = SIMD[DType.float32, WIDTH]
comptime UnitPointer = Pointer[Int32, MutUntrackedOrigin]
comptime FloatPointer = Pointer[Float32, MutUntrackedOrigin]
comptime BytePointer = Pointer[UInt8, MutUntrackedOrigin]


def units_of[dtype: DType](count: Int) -> Int:
    """The units that hold some numbers, the last one padded."""
    return ceildiv(count * size_of[dtype](), 4)


@always_inline
def multiply_add[dtype: DType](sums: Sums, a: Units, b: Units) -> Sums:
    """A lane's sum grows by the product of its units; of a pair, by both products."""
    comptime if dtype == DType.float32:
        return bitcast[DType.float32, WIDTH](a).fma(bitcast[DType.float32, WIDTH](b), sums)
    elif WIDTH == 16 and CompilationTarget._has_feature["avx512bf16"]():
        return llvm_intrinsic["llvm.x86.avx512bf16.dpbf16ps.512", Sums, has_side_effect=False](
            sums, bitcast[DType.bfloat16, 2 * WIDTH](a), bitcast[DType.bfloat16, 2 * WIDTH](b)
        )
    else:  # the high half of a float32 is the bfloat16 of the same value
        comptime HIGH = Units(-65536)
        var even = bitcast[DType.float32, WIDTH](a << 16).fma(
            bitcast[DType.float32, WIDTH](b << 16), sums
        )
        return bitcast[DType.float32, WIDTH](a & HIGH).fma(
            bitcast[DType.float32, WIDTH](b & HIGH), even
        )


@always_inline
def multiply_step[
    dtype: DType, rows: Int, vectors: Int
](
    mut sums: Array[Sums, rows * vectors],
    a: Array[Int32, rows],
    b: UnitPointer,
):
    """One unit of each row times one row of vectors."""
    var right = Array[Units, vectors](uninitialized=True)
    comptime for j in range(vectors):
        right[j] = b.unsafe_load[width=WIDTH, alignment=4](WIDTH * j)
    comptime for i in range(rows):
        comptime for j in range(vectors):
            sums[i * vectors + j] = multiply_add[dtype](
                sums[i * vectors + j], Units(a[i]), right[j]
            )


@always_inline
def unit_at[dtype: DType](row: BytePointer, unit: Int, columns: Int) -> Int32:
    """A unit of a row of numbers, zero filled where the row ends in its midst."""
    if (unit + 1) * 4 <= columns * size_of[dtype]():
        return row.unsafe_bitcast[Int32]().unsafe_load[alignment=2](unit)
    return row.unsafe_bitcast[UInt16]().unsafe_load(2 * unit).cast[DType.int32]()
