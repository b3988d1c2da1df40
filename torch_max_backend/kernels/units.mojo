"""Products of units: one float64, one float32 or a pair of bfloat16 numbers.

Both operands of a matrix product are read in such units, so that one kernel serves all types. Sums
of bfloat16 are float32. The sizes of a tile keep its sums in registers: 24 of the 32 that AVX-512
and Arm have, 12 of the 16 of AVX2.
"""

from std.math import ceildiv
from std.memory import Pointer, bitcast
from std.sys import CompilationTarget, llvm_intrinsic, simd_width_of, size_of

comptime ROWS = 6
"""Rows of a tile."""
comptime VECTORS = 2 if simd_width_of[DType.float32]() == 8 else 4
"""Vectors in a row of a tile."""

comptime UNIT[dtype: DType] = DType.int64 if dtype == DType.float64 else DType.int32
comptime SUM[dtype: DType] = DType.float64 if dtype == DType.float64 else DType.float32
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


@always_inline
def multiply_add[
    dtype: DType
](sums: Sums[dtype], a: Units[dtype], b: Units[dtype]) -> Sums[dtype]:
    """A lane's sum grows by the product of its units; of a pair, by both products."""
    comptime width = WIDTH[dtype]
    comptime if dtype != DType.bfloat16:
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
        comptime for j in range(vectors):
            sums[i * vectors + j] = multiply_add[dtype](
                sums[i * vectors + j], Units[dtype](a[i]), right[j]
            )


@always_inline
def unit_at[dtype: DType](row: BytePointer, unit: Int, columns: Int) -> Scalar[UNIT[dtype]]:
    """A unit of a row of numbers, zero filled where the row ends in its midst."""
    comptime size = size_of[UNIT[dtype]]()
    if (unit + 1) * size <= columns * size_of[dtype]():
        return row.unsafe_bitcast[Scalar[UNIT[dtype]]]().unsafe_load[alignment=2](unit)
    return row.unsafe_bitcast[UInt16]().unsafe_load(2 * unit).cast[UNIT[dtype]]()
