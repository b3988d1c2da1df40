"""Operands in the order in which a tile reads them: vectors of units, one after the other."""

from std.math import ceildiv
from std.memory import bitcast
from std.sys import size_of
from std.utils.index import IndexList
from .units import *

comptime LANE[dtype: DType] = 16 // size_of[UNIT[dtype]]()
"""Units in 128 bits: what shuffles faster within than across."""


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
            var square = source.unsafe_offset(r * row_bytes)
            var place = target.unsafe_offset(u * stride + r)
            if present == width:
                _turn_square[dtype, all=True](square, row_bytes, u, present, place, stride)
            else:
                _turn_square[dtype, all=False](square, row_bytes, u, present, place, stride)
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
def _turn_square[
    dtype: DType, all: Bool
](
    source: BytePointer,
    row_bytes: Int,
    unit: Int,
    present: Int,
    target: UnitPointer[dtype],
    stride: Int,
):
    """The units from ``unit`` on of as many rows, ``all`` of them or those ``present``."""
    comptime lane = LANE[dtype]
    comptime for first in range(0, WIDTH[dtype], lane):
        var rows = Array[Units[dtype], lane](uninitialized=True)
        comptime for i in range(lane):
            rows[i] = _lanes[dtype, WIDTH[dtype], all](
                source.unsafe_offset(i * row_bytes), row_bytes, unit + first, present - i
            )
        var turned = _turned_in_lanes[dtype](rows^)
        comptime for i in range(lane):
            target.unsafe_store[alignment=4]((first + i) * stride, turned[i])


@always_inline
def _lanes[
    dtype: DType, width: Int, all: Bool
](source: BytePointer, row_bytes: Int, unit: Int, present: Int) -> SIMD[UNIT[dtype], width]:
    """A lane of units from each LANE-th row."""
    comptime if width > LANE[dtype]:
        comptime half = width // 2
        var rest = source.unsafe_offset(half * row_bytes)
        return rebind[SIMD[UNIT[dtype], width]](
            _lanes[dtype, half, all](source, row_bytes, unit, present).join(
                _lanes[dtype, half, all](rest, row_bytes, unit, present - half)
            )
        )
    comptime if not all:
        if present <= 0:
            return SIMD[UNIT[dtype], width](0)
    return source.unsafe_bitcast[Scalar[UNIT[dtype]]]().unsafe_load[
        width=width, alignment = size_of[dtype]()
    ](unit)


@always_inline
def _turned_in_lanes[
    dtype: DType
](var rows: Array[Units[dtype], LANE[dtype]]) -> Array[Units[dtype], LANE[dtype]]:
    """The squares of units that the lanes hold, turned by log2(LANE) perfect shuffles."""
    comptime lane = LANE[dtype]
    comptime for _ in range(_log2(lane)):
        var mixed = Array[Units[dtype], lane](uninitialized=True)
        comptime for i in range(lane // 2):
            comptime for high in range(2):
                mixed[2 * i + high] = rows[i].shuffle[_interleaved[WIDTH[dtype], lane, high]()](
                    rows[i + lane // 2]
                )
        rows = mixed^
    return rows^


def _interleaved[width: Int, lane: Int, half: Int]() -> IndexList[width]:
    """The lower or upper halves of the lanes of two vectors, number by number."""
    var mask = IndexList[width]()
    for start in range(0, width, lane):
        for i in range(lane // 2):
            mask[start + 2 * i] = start + half * (lane // 2) + i
            mask[start + 2 * i + 1] = width + mask[start + 2 * i]
    return mask


def _log2(n: Int) -> Int:
    var log = 0
    while (1 << log) < n:
        log += 1
    return log
