"""The product of a linear layer: output[m, n] = sum over k of a[m, k] * weight[n, k].

The output is cut into pieces, a panel of columns by some blocks of rows, which workers take as they
get to them. Each packs the weights of its panel; they, a block of ``a`` and their sums stay in cache
(Goto and van de Geijn, 2008).
"""

from std.atomic import Atomic
from std.math import ceildiv
from std.memory.alloc import unsafe_alloc
from std.runtime import parallelism_level
from std.sys import size_of
from max.algorithm import sync_parallelize
from .packing import pack_columns
from .units import *

comptime PANEL = VECTORS * WIDTH
"""Columns of a panel."""
comptime BLOCK_ROWS = 16 * ROWS
"""Rows of a block, at most."""
comptime PIECE_BLOCKS = 8
"""Blocks of a piece, at most."""
comptime BLOCK_UNITS = 512
"""Units of the inner axis that are summed up at a time."""
comptime Store = def[width: Int](Int, Int, SIMD[DType.float32, width]) -> None
"""Takes the results from (row, column) on; what is fused into the product happens there."""


@fieldwise_init
struct Product[dtype: DType](Copyable, ImplicitlyCopyable, Movable):
    """The operands, (rows, depth) and (columns, depth), dense."""

    var a: BytePointer
    var weight: BytePointer
    var rows: Int
    var columns: Int
    var depth: Int

    def row_bytes(self) -> Int:
        return self.depth * size_of[Self.dtype]()

    def a_row(self, m: Int) -> BytePointer:
        return self.a.unsafe_offset(m * self.row_bytes())

    def weight_row(self, n: Int) -> BytePointer:
        return self.weight.unsafe_offset(n * self.row_bytes())


def linear[dtype: DType, Epilogue: Store](product: Product[dtype], store: Epilogue):
    """Computes all of it, in parallel, and hands each number to ``store`` once."""
    var workers = parallelism_level()
    if product.rows < ROWS:
        var share = ceildiv(product.columns, workers)

        def few(worker: Int) {product, share, imm store}:
            var first = worker * share
            comptime for rows in range(1, ROWS):
                if product.rows == rows:
                    _few_rows[dtype, rows](
                        product, first, min(product.columns, first + share), store
                    )

        sync_parallelize(few, workers)
        return
    var panels = ceildiv(product.columns, PANEL)
    var blocks = ceildiv(product.rows, BLOCK_ROWS)
    var height = ceildiv(ceildiv(product.rows, blocks), ROWS) * ROWS
    # enough pieces for workers of unlike speed, few enough that packing a panel for each is little
    var chunk = max(1, min(PIECE_BLOCKS, panels * blocks // (4 * workers))) * height
    var pieces = panels * ceildiv(product.rows, chunk)
    var taken = unsafe_alloc[Int64](1)
    taken[] = 0

    def work(worker: Int) {product, panels, height, chunk, pieces, taken, imm store}:
        var units = units_of[dtype](product.depth)
        var memory = unsafe_alloc[Int32]((units + BLOCK_ROWS) * PANEL, alignment=64)
        var sums = memory.unsafe_offset(units * PANEL).unsafe_bitcast[Float32]()
        while True:
            var piece = Int(Atomic[Int64].fetch_add(taken, 1))
            if piece >= pieces:
                break
            var row = piece // panels * chunk
            _piece[dtype](
                product,
                piece % panels * PANEL,
                row,
                min(product.rows, row + chunk),
                height,
                memory,
                sums,
                store,
            )
        memory.unsafe_free()

    sync_parallelize(work, workers)
    taken.unsafe_free()


@always_inline
def _piece[
    dtype: DType, Epilogue: Store
](
    product: Product[dtype],
    column: Int,
    first: Int,
    last: Int,
    height: Int,
    panel: UnitPointer,
    sums: FloatPointer,
    store: Epilogue,
):
    """The panel from ``column`` on times rows first..last, in blocks of ``height``."""
    var columns = min(PANEL, product.columns - column)
    pack_columns[dtype](
        product.weight_row(column), product.row_bytes(), columns, product.depth, panel, PANEL
    )
    for row in range(first, last, height):
        var end = min(last, row + height)
        _block[dtype](product, panel, ceildiv(columns, WIDTH), sums, row, end)
        for m in range(row, end):
            var line = sums.unsafe_offset((m - row) * PANEL)
            var n = 0
            while n + WIDTH <= columns:
                store[WIDTH](m, column + n, line.unsafe_load[width=WIDTH](n))
                n += WIDTH
            while n < columns:
                store[1](m, column + n, line.unsafe_load[width=1](n))
                n += 1


@always_inline
def _block[
    dtype: DType
](
    product: Product[dtype],
    panel: UnitPointer,
    vectors: Int,
    sums: FloatPointer,
    first: Int,
    last: Int,
):
    """Rows first..last times a panel."""
    comptime for present in range(1, VECTORS + 1):
        if vectors == present:
            for start in range(0, units_of[dtype](product.depth), BLOCK_UNITS):
                for m in range(first, last, ROWS):
                    _tile[dtype, present](
                        product, panel, sums.unsafe_offset((m - first) * PANEL), m, last, start
                    )


@always_inline
def _tile[
    dtype: DType, vectors: Int
](
    product: Product[dtype], panel: UnitPointer, target: FloatPointer, m: Int, last: Int, start: Int
):
    """ROWS rows times a panel over BLOCK_UNITS units; adds to what was summed up before."""
    var whole = product.row_bytes() // 4
    var end = min(whole, start + BLOCK_UNITS)
    var rows = Array[UnitPointer, ROWS](uninitialized=True)
    comptime for i in range(ROWS):  # the last row again where there are fewer
        rows[i] = product.a_row(min(m + i, last - 1)).unsafe_bitcast[Int32]()
    var sums = Array[Sums, ROWS * vectors](fill=Sums(0))
    var right = panel.unsafe_offset(start * PANEL)
    var left = Array[Int32, ROWS](uninitialized=True)
    for u in range(start, end):
        comptime for i in range(ROWS):
            left[i] = rows[i].unsafe_load[alignment=2](u)
        multiply_step[dtype, ROWS, vectors](sums, left, right)
        right = right.unsafe_offset(PANEL)
    if whole < min(units_of[dtype](product.depth), start + BLOCK_UNITS):
        comptime for i in range(ROWS):
            left[i] = unit_at[dtype](rows[i].unsafe_bitcast[UInt8](), whole, product.depth)
        multiply_step[dtype, ROWS, vectors](sums, left, panel.unsafe_offset(whole * PANEL))
    comptime for i in range(ROWS):
        comptime for j in range(vectors):
            var place = i * PANEL + j * WIDTH
            if start > 0:
                sums[i * vectors + j] += target.unsafe_load[width=WIDTH](place)
            target.unsafe_store(place, sums[i * vectors + j])


def _few_rows[
    dtype: DType, rows: Int, Epilogue: Store
](product: Product[dtype], first: Int, last: Int, store: Epilogue):
    """Columns first..last as dot products: packing would cost more than it gains."""
    var units = product.row_bytes() // 4
    for n in range(first, last):
        var right = product.weight_row(n)
        var sums = Array[Sums, rows](fill=Sums(0))
        var u = 0
        while u + WIDTH <= units:
            var unit = right.unsafe_bitcast[Int32]().unsafe_load[width=WIDTH, alignment=2](u)
            comptime for m in range(rows):
                var left = product.a_row(m).unsafe_bitcast[Int32]()
                sums[m] = multiply_add[dtype](
                    sums[m], left.unsafe_load[width=WIDTH, alignment=2](u), unit
                )
            u += WIDTH
        comptime for m in range(rows):
            var left = product.a_row(m).unsafe_bitcast[Scalar[dtype]]()
            var total = sums[m].reduce_add()
            for k in range(u * 4 // size_of[dtype](), product.depth):
                var weight = right.unsafe_bitcast[Scalar[dtype]]()[unsafe_offset=k]
                total += left[unsafe_offset=k].cast[DType.float32]() * weight.cast[DType.float32]()
            store[1](m, n, SIMD[DType.float32, 1](total))
