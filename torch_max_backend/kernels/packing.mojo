"""Operands in the order in which a tile reads them: vectors of units, one after the other."""

from std.math import ceildiv
from std.memory import bitcast
from std.sys import size_of
from .units import *


def pack_columns[
    dtype: DType
](
    source: BytePointer,
    row_bytes: Int,
    rows: Int,
    columns: Int,
    target: UnitPointer[dtype],
    stride: Int,
):
    """Transposes: target[u * stride + r] is unit u of row r.

    Rows up to the next multiple of a vector, for which ``stride`` has room, and what is missing of
    a last unit are zero.
    """
    comptime width = WIDTH[dtype]
    var whole = columns * size_of[dtype]() // size_of[UNIT[dtype]]()
    var units = units_of[dtype](columns)
    for r in range(0, rows, width):
        var present = min(width, rows - r)
        var u = 0
        while u + width <= whole:
            var square = Array[Units[dtype], width](fill=Units[dtype](0))
            comptime for i in range(width):
                if i < present:
                    square[i] = (
                        source.unsafe_offset((r + i) * row_bytes)
                        .unsafe_bitcast[Scalar[UNIT[dtype]]]()
                        .unsafe_load[width=width, alignment = size_of[dtype]()](u)
                    )
            var turned = _transposed[dtype](square^)
            comptime for i in range(width):
                target.unsafe_store[alignment=4]((u + i) * stride + r, turned[i])
            u += width
        while u < units:
            for i in range(width):
                var unit = Scalar[UNIT[dtype]](0)
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
    target: UnitPointer[dtype],
    stride: Int,
    units: Int,
):
    """Keeps the order: target[u * stride + c] is column c of row u, or of the pair of rows u.

    Rows that are missing in ``units``, and columns up to the next multiple of a vector, for which
    ``stride`` has room, are zero.
    """
    comptime group = size_of[UNIT[dtype]]() // size_of[dtype]()
    comptime width = WIDTH[dtype]
    var filled = ceildiv(columns, width) * width
    for u in range(units):
        var row = target.unsafe_offset(u * stride)
        var numbers = source.unsafe_offset(u * group * row_bytes)
        var present = rows - u * group
        var c = 0
        while c + width <= columns and present >= group:
            row.unsafe_store[alignment=4](c, _unit_row[dtype](numbers, row_bytes, c))
            c += width
        while c < filled:
            var unit = SIMD[dtype, group](0)
            comptime for g in range(group):
                if g < present and c < columns:
                    var line = numbers.unsafe_offset(g * row_bytes)
                    unit[g] = line.unsafe_bitcast[Scalar[dtype]]()[unsafe_offset=c]
            row[unsafe_offset=c] = bitcast[UNIT[dtype], 1](unit)
            c += 1


@always_inline
def _unit_row[dtype: DType](numbers: BytePointer, row_bytes: Int, column: Int) -> Units[dtype]:
    """A vector of columns of one row or, of bfloat16, of two rows, interleaved."""
    comptime width = WIDTH[dtype]
    var first = numbers.unsafe_bitcast[Scalar[dtype]]().unsafe_load[width=width, alignment=2](
        column
    )
    comptime if dtype == SUM[dtype]:
        return bitcast[UNIT[dtype], width](first)
    else:
        var second = (
            numbers.unsafe_offset(row_bytes)
            .unsafe_bitcast[Scalar[dtype]]()
            .unsafe_load[width=width, alignment=2](column)
        )
        return bitcast[UNIT[dtype], width](first.interleave(second))


@always_inline
def _transposed[
    dtype: DType
](var rows: Array[Units[dtype], WIDTH[dtype]]) -> Array[Units[dtype], WIDTH[dtype]]:
    """A square of units, turned by log2(width) perfect shuffles."""
    comptime width = WIDTH[dtype]
    comptime half = width // 2
    comptime for _ in range(_log2(width)):
        var mixed = Array[Units[dtype], width](uninitialized=True)
        comptime for i in range(half):
            var pairs = rows[i].interleave(rows[i + half])
            mixed[2 * i] = rebind[Units[dtype]](pairs.slice[width]())
            mixed[2 * i + 1] = rebind[Units[dtype]](pairs.slice[width, offset=width]())
        rows = mixed^
    return rows^


def _log2(n: Int) -> Int:
    var log = 0
    while (1 << log) < n:
        log += 1
    return log
