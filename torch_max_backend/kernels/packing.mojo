"""Operands in the order in which a tile reads them.

Of the right one, lines of vectors: units, or the parts of a unit one after the other. Of the left
one, where units are split, the parts of a row's units.
"""

from std.math import ceildiv
from std.memory import bitcast
from std.sys import size_of
from std.utils.index import IndexList
from .units import *

comptime LANE[dtype: DType] = 16 // size_of[UNIT[dtype]]()
"""Units in 128 bits: what shuffles faster within than across."""


@always_inline
def split_row[dtype: DType](row: BytePointer, columns: Int, target: UnitPointer[dtype]):
    """The lines of a row of the left operand; the last unit is zero filled."""
    comptime width = WIDTH[dtype]
    comptime parts = PARTS[dtype]
    var whole = columns * size_of[dtype]() // size_of[UNIT[dtype]]()
    var source = row.unsafe_bitcast[Scalar[UNIT[dtype]]]()
    var u = 0
    while u + width <= whole:
        var units = source.unsafe_load[width=width, alignment = size_of[dtype]()](u)
        comptime if parts == 1:
            target.unsafe_store[alignment=4](u, units)
        else:
            var first = left_part[dtype, 0, width](units)
            target.unsafe_store[alignment=4](
                2 * u, first.interleave(left_part[dtype, 1, width](units))
            )
        u += width
    while u < units_of[dtype](columns):
        var unit = unit_at[dtype](row, u, columns)
        comptime if parts == 1:
            target[unsafe_offset=u] = unit
        else:
            comptime for part in range(parts):
                target[unsafe_offset=u * parts + part] = left_part[dtype, part, 1](unit)
        u += 1


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
    """Transposes: target[l * stride + r] is line l of row r.

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
            var place = target.unsafe_offset(u * PARTS[dtype] * stride + r)
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
                var place = u * PARTS[dtype] * stride + r + i
                _store_parts[dtype, 1](unit, target.unsafe_offset(place), stride)
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
    lines: Int,
):
    """Keeps the order: target[l * stride + c] is column c of row l, or of the pair of rows l.

    Rows that are missing in ``lines``, and columns up to the next multiple of a vector, for which
    ``stride`` has room, are zero.
    """
    comptime group = size_of[UNIT[dtype]]() // size_of[dtype]()
    comptime width = WIDTH[dtype]
    var filled = ceildiv(columns, width) * width
    for u in range(lines // PARTS[dtype]):
        var row = target.unsafe_offset(u * PARTS[dtype] * stride)
        var numbers = source.unsafe_offset(u * group * row_bytes)
        var present = rows - u * group
        var c = 0
        while c + width <= columns and present >= group:
            _store_parts[dtype](
                _unit_row[dtype](numbers, row_bytes, c), row.unsafe_offset(c), stride
            )
            c += width
        while c < filled:
            var unit = SIMD[dtype, group](0)
            comptime for g in range(group):
                if g < present and c < columns:
                    var line = numbers.unsafe_offset(g * row_bytes)
                    unit[g] = line.unsafe_bitcast[Scalar[dtype]]()[unsafe_offset=c]
            _store_parts[dtype, 1](bitcast[UNIT[dtype], 1](unit), row.unsafe_offset(c), stride)
            c += 1


@always_inline
def _store_parts[
    dtype: DType, width: Int
](units: SIMD[UNIT[dtype], width], target: UnitPointer[dtype], stride: Int):
    comptime for part in range(PARTS[dtype]):
        target.unsafe_store[alignment=4](part * stride, right_part[dtype, part, width](units))


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
            var line = (first + i) * PARTS[dtype]
            _store_parts[dtype](turned[i], target.unsafe_offset(line * stride), stride)


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
