"""Gated linear units (Shazeer, 2020): a linear layer of two halves of columns, of which one, after
an activation, is multiplied by the other.

A panel has HALF columns of either, so that a worker has both at hand.
"""

from std.memory import Pointer
from std.sys import size_of
from .contraction import Extents, Operands, PANEL, Table, contract
from .fetching import Ahead, Place, Places
from .functions import activate
from .matmul import COLUMNS_FIRST, Product
from .packing import pack_columns
from .rounding import rounded, widened
from .units import *

comptime HALF[dtype: DType] = PANEL[dtype] // 2


@fieldwise_init
struct Halves(Copyable, ImplicitlyCopyable, Movable):
    """Where the halves of the columns start, of ``features`` each: what is gated, and its gates."""

    var gated: Int
    var gates: Int

    @always_inline
    def __init__(out self, features: Int, gates_first: Bool):
        self.gated = features if gates_first else 0
        self.gates = features - self.gated


@fieldwise_init
struct GatedProduct[dtype: DType](Operands):
    """A product whose right operand is read so that a panel has columns of both halves."""

    var product: Product[Self.dtype, COLUMNS_FIRST]
    var halves: Halves

    def extents(self) -> Extents:
        return self.product.extents()

    def left(self, b: Int, first: Int, last: Int, zeros: BytePointer, table: Table):
        self.product.left(b, first, last, zeros, table)

    def right_at(self, b: Int, column: Int, columns: Int) -> Ahead:
        var size = columns // 2 * self.product.depth * size_of[Self.dtype]()
        var gated = self.product.column(b, self.halves.gated + column // 2)
        return Ahead(gated, self.product.column(b, self.halves.gates + column // 2), size)

    def is_packed(self) -> Bool:
        return False

    def panel(self, b: Int, column: Int, columns: Int, scratch: BytePointer) -> BytePointer:
        var target = scratch.unsafe_bitcast[Scalar[UNIT[Self.dtype]]]()
        var row = self.product.depth * size_of[Self.dtype]()
        comptime for half in range(2):
            var start = self.halves.gates if half else self.halves.gated
            pack_columns[Self.dtype](
                self.product.column(b, start + column // 2),
                row,
                columns // 2,
                self.product.depth,
                target.unsafe_offset(half * HALF[Self.dtype]),
                PANEL[Self.dtype],
            )
        return scratch


def gated_linear[
    dtype: DType, activation: StaticString, Source: Operands
](
    source: Source,
    bias: Pointer[Scalar[dtype], MutUntrackedOrigin],
    halves: Halves,
    output: Pointer[Scalar[dtype], MutUntrackedOrigin],
):
    """A dense (rows, features) output; features are a multiple of HALF."""
    var features = source.extents().columns // 2

    @always_inline
    def store[
        width: Int
    ](b: Int, m: Int, n: Int, v: SIMD[SUM[dtype], width]) {var bias, var halves, var output, features}:
        var column = n // PANEL[dtype] * HALF[dtype] + n % HALF[dtype]
        var target = output.unsafe_offset(m * features + column)
        var is_gate = n % PANEL[dtype] >= HALF[dtype]
        var start = halves.gates if is_gate else halves.gated
        var x = v.cast[DType.float32]()
        x += widened[width](bias, start + column)
        if is_gate:  # after what it gates, which the same worker has stored
            x = activate[activation, dtype](x) * widened[width](target, 0)
        target.unsafe_store[alignment=2](0, rounded[dtype](x))

    comptime size = size_of[dtype]()
    var start = output.unsafe_bitcast[UInt8]()
    # two columns of the product for each of the output
    var results = Place(start, 0, features * size, size // 2)
    contract[dtype](source, Places(results, Place(start, 0, 0, 0)), store)
