"""Tensors copied with their axes in another order.

MAX's own copy is not used where a graph may begin with it: in MAX 26.6 the thread that called then
computes it and sleeps until workers are done, and sleeps again for the rest of the graph.
"""

from std.memory import Pointer
from std.sys import size_of
from std.utils.index import IndexList
from .concat import SMALL, copy_bytes
from .shares import in_shares


@fieldwise_init
struct Permutation[dtype: DType, rank: Int](Copyable, ImplicitlyCopyable, Movable):
    """The target's axes: their sizes, and how far apart, in numbers, they lie in the source."""

    comptime Numbers = Pointer[Scalar[Self.dtype], MutUntrackedOrigin]

    var source: Self.Numbers
    var target: Self.Numbers
    var sizes: IndexList[Self.rank]
    var strides: IndexList[Self.rank]

    def run(self):
        """All of it, in parallel."""
        var rows = 1
        for axis in range(Self.rank - 1):
            rows *= self.sizes[axis]
        if rows == 0:
            return

        def work(first: Int, last: Int) {self}:
            self._rows(first, last)

        var size = rows * self.sizes[Self.rank - 1] * size_of[Self.dtype]()
        in_shares(rows, size <= SMALL, work)

    def _rows(self, first: Int, last: Int):
        """Rows first..last of the target, of its last axis each."""
        var count = self.sizes[Self.rank - 1]
        var step = self.strides[Self.rank - 1]
        var index = IndexList[Self.rank](0)
        var left = first
        var place = 0
        for i in range(Self.rank - 1):
            var axis = Self.rank - 2 - i
            index[axis] = left % self.sizes[axis]
            left = left // self.sizes[axis]
            place += index[axis] * self.strides[axis]
        for row in range(first, last):
            self._row(self.source.unsafe_offset(place), step, count, row * count)
            var axis = Self.rank - 2
            while axis >= 0:
                index[axis] += 1
                place += self.strides[axis]
                if index[axis] < self.sizes[axis]:
                    break
                place -= index[axis] * self.strides[axis]
                index[axis] = 0
                axis -= 1

    @always_inline
    def _row(self, source: Self.Numbers, step: Int, count: Int, place: Int):
        var target = self.target.unsafe_offset(place)
        if step == 1:
            comptime size = size_of[Self.dtype]()
            copy_bytes(
                source.unsafe_bitcast[UInt8](), count * size, target.unsafe_bitcast[UInt8]()
            )
        else:
            for i in range(count):
                target[unsafe_offset=i] = source[unsafe_offset = i * step]
