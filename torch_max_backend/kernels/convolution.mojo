"""Convolutions of channels-last images as contractions.

A row of the left operand is what a pixel of the output sees: for each tap of the filter, a segment,
the channels of one pixel of the input, or zeros beyond its border.
"""

from std.sys import size_of
from .contraction import Extents, Operands, PANEL, Table, panel_bytes
from .fetching import Ahead
from .packing import pack_columns
from .units import *


@fieldwise_init
struct Axis(Copyable, ImplicitlyCopyable, Movable):
    """One axis of the images and of the filter; ``spacing`` is 1 but for transposed convolutions,
    whose inputs lie that far apart."""

    var input: Int
    var output: Int
    var taps: Int
    var stride: Int
    var dilation: Int
    var padding: Int
    var spacing: Int

    def place(self, pixel: Int, tap: Int) -> Int:
        """The pixel of the input that a tap of an output's pixel sees, or -1."""
        var place = pixel * self.stride + tap * self.dilation - self.padding
        if self.spacing > 1 and place >= 0:
            place = place // self.spacing if place % self.spacing == 0 else -1
        return place if place < self.input else -1


@fieldwise_init
struct Convolution[dtype: DType, packed: Bool](Operands):
    """(batch, *input, groups * channels) images and (groups * filters, *taps, channels) filters;
    the groups are the contraction's batch. Filters of one group may be packed in panels."""

    var images: BytePointer
    var filters: BytePointer
    var batch: Int
    var groups: Int
    var channels: Int
    var columns: Int
    var planes: Axis
    var lines: Axis
    var pixels: Axis

    def taps(self) -> Int:
        return self.planes.taps * self.lines.taps * self.pixels.taps

    def extents(self) -> Extents:
        var rows = self.batch * self.planes.output * self.lines.output * self.pixels.output
        return Extents(self.groups, rows, self.columns, self.taps(), self.channels)

    def left(self, b: Int, first: Int, last: Int, zeros: BytePointer, table: Table):
        var start = self.images.unsafe_offset(b * self.channels * size_of[Self.dtype]())
        var size = self.groups * self.channels * size_of[Self.dtype]()
        var place = 0
        for m in range(first, last):
            var line = m // self.pixels.output
            var plane = line // self.lines.output
            var image = plane // self.planes.output
            for i in range(self.planes.taps):
                var z = self.planes.place(plane % self.planes.output, i)
                for j in range(self.lines.taps):
                    var y = self.lines.place(line % self.lines.output, j)
                    var seen = (image * self.planes.input + z) * self.lines.input + y
                    for k in range(self.pixels.taps):
                        var x = self.pixels.place(m % self.pixels.output, k)
                        table[unsafe_offset=place] = zeros if z < 0 or y < 0 or x < 0 else (
                            start.unsafe_offset((seen * self.pixels.input + x) * size)
                        )
                        place += 1

    def filter_bytes(self) -> Int:
        return self.taps() * self.channels * size_of[Self.dtype]()

    def right_at(self, b: Int, column: Int, columns: Int) -> Ahead:
        comptime if Self.packed:
            var size = panel_bytes[Self.dtype](self.taps(), self.channels)
            return Ahead(self.filters.unsafe_offset(column // PANEL[Self.dtype] * size), size)
        var row = self.filter_bytes()
        var start = self.filters.unsafe_offset((b * self.columns + column) * row)
        return Ahead(start, columns * row)

    def is_packed(self) -> Bool:
        return Self.packed

    def panel(self, b: Int, column: Int, columns: Int, scratch: BytePointer) -> BytePointer:
        comptime size = size_of[Self.dtype]()
        comptime stride = PANEL[Self.dtype]
        var source = self.right_at(b, column, columns).next
        comptime if Self.packed:
            return source
        var row = self.filter_bytes()
        var target = scratch.unsafe_bitcast[Scalar[UNIT[Self.dtype]]]()
        var lines = lines_of[Self.dtype](self.channels)
        for tap in range(self.taps()):
            pack_columns[Self.dtype](
                source.unsafe_offset(tap * self.channels * size),
                row,
                columns,
                self.channels,
                target.unsafe_offset(tap * lines * stride),
                stride,
            )
        return scratch
