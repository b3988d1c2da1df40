"""Linear layers as steps of something larger, in a parallel region that is there already."""

from std.memory import Pointer
from std.sys import size_of
from .contraction import Operands, Shares
from .fetching import Place, Places
from .functions import activate
from .normalization import Factors
from .rounding import rounded, widened
from .units import *


@fieldwise_init
struct Layer[dtype: DType, Source: Operands](Copyable, ImplicitlyCopyable, Movable):
    """A product over dense rows, its bias, and where its results go, dense rows as well."""

    comptime Numbers = Pointer[Scalar[Self.dtype], MutUntrackedOrigin]

    var product: Self.Source
    var bias: Self.Numbers
    var output: Self.Numbers

    def shares(self, workers: Int) -> Shares[Self.dtype]:
        return Shares[Self.dtype](self.product.extents(), self.product.is_packed(), workers)

    def activated[
        activation: StaticString
    ](self, shares: Shares[Self.dtype], worker: Int):
        """A worker's share of the activation of the layer."""
        var columns = self.product.extents().columns

        @always_inline
        def store[
            width: Int
        ](b: Int, m: Int, n: Int, v: SIMD[SUM[Self.dtype], width]) {var self, var columns}:
            var x = v.cast[DType.float32]() + widened[width](self.bias, n)
            x = activate[activation, Self.dtype](x)
            self.output.unsafe_store[alignment=2](m * columns + n, rounded[Self.dtype](x))

        var places = Places(self._place(self.output), Place(self._bytes(), 0, 0, 0))
        shares.contract(self.product, worker, places, store)

    def added[
        scaled: Bool
    ](
        self, x: Self.Numbers, scale: Factors[_], shares: Shares[Self.dtype], worker: Int
    ):
        """A worker's share of x plus the layer, times ``scale`` if it is ``scaled``."""
        var columns = self.product.extents().columns

        @always_inline
        def store[
            width: Int
        ](
            b: Int, m: Int, n: Int, v: SIMD[SUM[Self.dtype], width]
        ) {var self, var x, var scale, var columns}:
            var branch = v.cast[DType.float32]() + widened[width](self.bias, n)
            comptime if scaled:
                branch *= scale.load[DType.float32, width](n)
            var place = m * columns + n
            var sum = widened[width](x, place) + branch
            self.output.unsafe_store[alignment=2](place, rounded[Self.dtype](sum))

        var places = Places(self._place(self.output), self._place(x))
        shares.contract(self.product, worker, places, store)

    def _bytes(self) -> BytePointer:
        return self.output.unsafe_bitcast[UInt8]()

    def _place(self, start: Self.Numbers) -> Place:
        """Of a tensor like the results."""
        comptime size = size_of[Self.dtype]()
        var row = self.product.extents().columns * size
        return Place(start.unsafe_bitcast[UInt8](), 0, row, size)
