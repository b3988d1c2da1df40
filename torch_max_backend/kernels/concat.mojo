"""Tensors one after the other along an axis."""

from std.runtime import parallelism_level
from max.algorithm import sync_parallelize
from .units import BytePointer

comptime SMALL = 1 << 16
"""Bytes that one worker copies sooner than others wake up."""


def copy_rows(source: BytePointer, row: Int, rows: Int, target: BytePointer, stride: Int):
    """``rows`` rows of ``row`` bytes to places ``stride`` bytes apart."""
    var workers = parallelism_level()
    if row * rows <= SMALL:
        workers = 1

    def work(worker: Int) {source, row, rows, target, stride, workers}:
        for r in range(worker * rows // workers, (worker + 1) * rows // workers):
            copy_bytes(source.unsafe_offset(r * row), row, target.unsafe_offset(r * stride))

    if workers == 1:
        work(0)
    else:
        sync_parallelize(work, workers)


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
