"""Operands in the order in which a tile reads them: vectors of units, one after the other."""

from std.math import ceildiv
from std.memory import bitcast
from std.sys import size_of
from .units import BytePointer, UnitPointer, Units, WIDTH, unit_at, units_of


def pack_columns[
    dtype: DType
](source: BytePointer, row_bytes: Int, rows: Int, columns: Int, target: UnitPointer, stride: Int):
    """Transposes: target[u * stride + r] is unit u of row r.

    Rows up to the next multiple of WIDTH, for which ``stride`` has room, and what is missing of a
    last unit are zero.
    """
    var whole = columns * size_of[dtype]() // 4
    var units = units_of[dtype](columns)
    for r in range(0, rows, WIDTH):
        var present = min(WIDTH, rows - r)
        var u = 0
        while u + WIDTH <= whole:
            var square = Array[Units, WIDTH](fill=Units(0))
            comptime for i in range(WIDTH):
                if i < present:
                    square[i] = (
                        source.unsafe_offset((r + i) * row_bytes)
                        .unsafe_bitcast[Int32]()
                        .unsafe_load[width=WIDTH, alignment=2](u)
                    )
            var turned = _transposed(square^)
            comptime for i in range(WIDTH):
                target.unsafe_store[alignment=4]((u + i) * stride + r, turned[i])
            u += WIDTH
        while u < units:
            for i in range(WIDTH):
                var unit = Int32(0)
                if i < present:
                    unit = unit_at[dtype](source.unsafe_offset((r + i) * row_bytes), u, columns)
                target[unsafe_offset=u * stride + r + i] = unit
            u += 1


def pack_rows[
    dtype: DType
](
    source: BytePointer,
    row_bytes: Int,
    rows: Int,
    columns: Int,
    target: UnitPointer,
    stride: Int,
    units: Int,
):
    """Keeps the order: target[u * stride + c] is column c of row u, or of the pair of rows u.

    Rows that are missing in ``units`` and columns that are missing in ``stride`` are zero.
    """
    comptime group = 4 // size_of[dtype]()
    for u in range(units):
        var row = target.unsafe_offset(u * stride)
        var numbers = source.unsafe_offset(u * group * row_bytes)
        var present = rows - u * group
        var c = 0
        while c + WIDTH <= columns and present >= group:
            row.unsafe_store[alignment=4](c, _unit_row[dtype](numbers, row_bytes, c))
            c += WIDTH
        while c < stride:
            var unit = SIMD[dtype, group](0)
            comptime for g in range(group):
                if g < present and c < columns:
                    var line = numbers.unsafe_offset(g * row_bytes)
                    unit[g] = line.unsafe_bitcast[Scalar[dtype]]()[unsafe_offset=c]
            row[unsafe_offset=c] = bitcast[DType.int32, 1](unit)
            c += 1


@always_inline
def _unit_row[dtype: DType](numbers: BytePointer, row_bytes: Int, column: Int) -> Units:
    """WIDTH columns of one row (float32) or of two rows, interleaved (bfloat16)."""
    var first = numbers.unsafe_bitcast[Scalar[dtype]]().unsafe_load[width=WIDTH, alignment=2](
        column
    )
    comptime if size_of[dtype]() == 4:
        return bitcast[DType.int32, WIDTH](first)
    else:
        var second = (
            numbers.unsafe_offset(row_bytes)
            .unsafe_bitcast[Scalar[dtype]]()
            .unsafe_load[width=WIDTH, alignment=2](column)
        )
        return bitcast[DType.int32, WIDTH](first.interleave(second))


@always_inline
def _transposed(var rows: Array[Units, WIDTH]) -> Array[Units, WIDTH]:
    """A square of units, turned by log2(WIDTH) perfect shuffles."""
    comptime half = WIDTH // 2
    comptime for _ in range(_log2(WIDTH)):
        var mixed = Array[Units, WIDTH](uninitialized=True)
        comptime for i in range(half):
            var pairs = rows[i].interleave(rows[i + half])
            mixed[2 * i] = rebind[Units](pairs.slice[WIDTH]())
            mixed[2 * i + 1] = rebind[Units](pairs.slice[WIDTH, offset=WIDTH]())
        rows = mixed^
    return rows^


def _log2(n: Int) -> Int:
    var log = 0
    while (1 << log) < n:
        log += 1
    return log
