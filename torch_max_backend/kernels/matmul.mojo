"""Products of matrices: sums over k of a[b, m, k] times right[b, n, k] or right[b, k, n]."""

from std.math import ceildiv
from std.runtime import parallelism_level
from std.sys import size_of
from max.algorithm import sync_parallelize
from .contraction import Extents, Operands, PANEL, Store, Table, contract, panel_bytes
from .fetching import Ahead, Places
from .packing import pack_columns, pack_rows
from .units import *

comptime DEPTH_FIRST = 0
"""A right operand of (batch, depth, columns)."""
comptime COLUMNS_FIRST = 1
"""One of (batch, columns, depth), as the weights of a linear layer."""
comptime IN_PANELS = 2
"""One that was packed before, (panels, lines, PANEL), zeros where columns are missing; of a type
that the processor multiplies whole, without a batch."""


@fieldwise_init
struct Product[dtype: DType, order: Int](Operands):
    """Dense operands: (batch, rows, depth), and the right one as ``order`` says."""

    var a: BytePointer
    var right: BytePointer
    var batch: Int
    var rows: Int
    var columns: Int
    var depth: Int

    def extents(self) -> Extents:
        return Extents(self.batch, self.rows, self.columns, 1, self.depth)

    def row(self, b: Int, m: Int) -> BytePointer:
        return self.a.unsafe_offset((b * self.rows + m) * self.depth * size_of[Self.dtype]())

    def left(self, b: Int, first: Int, last: Int, zeros: BytePointer, table: Table):
        for m in range(first, last):
            table[unsafe_offset=m - first] = self.row(b, m)

    def column(self, b: Int, n: Int) -> BytePointer:
        """Where the numbers of column n of the right operand start, or those of its panel."""
        comptime size = size_of[Self.dtype]()
        comptime if Self.order == IN_PANELS:
            var panel = panel_bytes[Self.dtype](1, self.depth)
            return self.right.unsafe_offset(n // PANEL[Self.dtype] * panel)
        comptime turned = Self.order == COLUMNS_FIRST
        var start = b * self.columns * self.depth + n * (self.depth if turned else 1)
        return self.right.unsafe_offset(start * size)

    def right_at(self, b: Int, column: Int, columns: Int) -> Ahead:
        comptime if Self.order == IN_PANELS:
            return Ahead(self.column(b, column), panel_bytes[Self.dtype](1, self.depth))
        elif Self.order == COLUMNS_FIRST:
            return Ahead(self.column(b, column), columns * self.depth * size_of[Self.dtype]())
        else:
            return Ahead(self.right, 0)

    def is_packed(self) -> Bool:
        return Self.order == IN_PANELS

    def panel(self, b: Int, column: Int, columns: Int, scratch: BytePointer) -> BytePointer:
        comptime size = size_of[Self.dtype]()
        comptime stride = PANEL[Self.dtype]
        var source = self.column(b, column)
        var target = scratch.unsafe_bitcast[Scalar[UNIT[Self.dtype]]]()
        comptime if Self.order == IN_PANELS:
            return source
        elif Self.order == COLUMNS_FIRST:
            pack_columns[Self.dtype](source, self.depth * size, columns, self.depth, target, stride)
        else:
            var lines = lines_of[Self.dtype](self.depth)
            pack_rows[Self.dtype](
                source, self.columns * size, self.depth, columns, target, stride, lines
            )
        return scratch


def matmul[
    dtype: DType, order: Int, Epilogue: Store[dtype]
](product: Product[dtype, order], places: Places, store: Epilogue):
    """Computes all of it, in parallel, and hands each number to ``store`` once."""
    comptime if order == COLUMNS_FIRST and dtype != DType.int8:
        if product.rows < ROWS:
            _few_rows[dtype](product, store)
            return
    contract[dtype](product, places, store)


def _few_rows[
    dtype: DType, order: Int, Epilogue: Store[dtype]
](product: Product[dtype, order], store: Epilogue):
    """As dot products: packing would cost more than it gains."""
    var workers = parallelism_level()
    var share = ceildiv(product.columns, workers)

    def work(worker: Int) {product, share, imm store}:
        var first = worker * share
        var last = min(product.columns, first + share)
        for b in range(product.batch):
            comptime for rows in range(1, ROWS):
                if product.rows == rows:
                    _dot_products[dtype, rows](product, b, first, last, store)

    sync_parallelize(work, workers)


def _dot_products[
    dtype: DType, rows: Int, Epilogue: Store[dtype]
](product: Product[dtype, _], b: Int, first: Int, last: Int, store: Epilogue):
    """Columns first..last."""
    comptime width = WIDTH[dtype]
    comptime Unit = Scalar[UNIT[dtype]]
    var units = product.depth * size_of[dtype]() // size_of[Unit]()
    for n in range(first, last):
        var right = product.column(b, n)
        var sums = Array[Sums[dtype], rows](fill=Sums[dtype](0))
        var u = 0
        while u + width <= units:
            var unit = right.unsafe_bitcast[Unit]().unsafe_load[width=width, alignment=2](u)
            comptime for m in range(rows):
                var left = product.row(b, m).unsafe_bitcast[Unit]()
                sums[m] = multiply_add[dtype](
                    sums[m], left.unsafe_load[width=width, alignment=2](u), unit
                )
            u += width
        comptime for m in range(rows):
            var left = product.row(b, m).unsafe_bitcast[Scalar[dtype]]()
            var total = sums[m].reduce_add()
            for k in range(u * size_of[Unit]() // size_of[dtype](), product.depth):
                var number = right.unsafe_bitcast[Scalar[dtype]]()[unsafe_offset=k]
                total += left[unsafe_offset=k].cast[SUM[dtype]]() * number.cast[SUM[dtype]]()
            store[1](b, m, n, SIMD[SUM[dtype], 1](total))
