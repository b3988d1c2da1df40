"""Tensors one after the other along an axis."""

from .shares import in_shares
from .units import BytePointer

comptime SMALL = 1 << 16
"""Bytes that one worker copies sooner than others wake up."""


def copy_rows(source: BytePointer, row: Int, rows: Int, target: BytePointer, stride: Int):
    """``rows`` rows of ``row`` bytes to places ``stride`` bytes apart."""

    def work(first: Int, last: Int) {source, row, target, stride}:
        for r in range(first, last):
            copy_bytes(source.unsafe_offset(r * row), row, target.unsafe_offset(r * stride))

    in_shares(rows, row * rows <= SMALL, work)


@always_inline
def copy_bytes(source: BytePointer, count: Int, target: BytePointer):
    comptime width = 64
    var i = 0
    while i + width <= count:
        target.unsafe_store[alignment=1](i, source.unsafe_load[width=width, alignment=1](i))
        i += width
    while i < count:
        target[unsafe_offset=i] = source[unsafe_offset=i]
        i += 1
