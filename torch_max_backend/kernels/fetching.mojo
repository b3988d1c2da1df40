"""Memory that is on its way to the cache before it is used."""

from std.memory import Pointer
from std.sys import PrefetchOptions, prefetch
from .units import BytePointer

comptime CACHE_LINE = 64
"""Bytes of a line of the cache."""
comptime TO_READ = PrefetchOptions().for_read().high_locality().to_data_cache()
comptime TO_WRITE = PrefetchOptions().for_write().high_locality().to_data_cache()
"""Takes lines from other cores besides, which a processor does late for numbers that are stored."""


struct Ahead(Copyable, ImplicitlyCopyable, Movable):
    """Memory that is to be in cache when it is read, and how many bytes of it are not yet; then,
    as many bytes as it has, other memory."""

    var next: BytePointer
    var left: Int
    var other: BytePointer
    var others: Int

    def __init__(out self, start: BytePointer, size: Int):
        self.next = start
        self.left = size
        self.other = start
        self.others = 0

    def __init__(out self, start: BytePointer, other: BytePointer, size: Int):
        self.next = start
        self.left = size
        self.other = other
        self.others = size

    @always_inline
    def fetch(mut self):
        """Has the next line read while others are multiplied."""
        if self.left > 0:
            prefetch[TO_READ](self.next)
            self.next = self.next.unsafe_offset(CACHE_LINE)
            self.left -= CACHE_LINE
        elif self.others > 0:
            self.next = self.other
            self.left = self.others
            self.others = 0


@fieldwise_init
struct Place(Copyable, ImplicitlyCopyable, Movable):
    """Where a tensor like the results lies: strides and the size of a number in bytes, 0 where
    there is none. It is only fetched from, so that it may be wrong."""

    var start: BytePointer
    var batch: Int
    var row: Int
    var number: Int

    @always_inline
    def fetch[
        options: PrefetchOptions
    ](self, b: Int, first: Int, last: Int, column: Int, columns: Int):
        """Columns of rows first..last."""
        var start = self.start.unsafe_offset(b * self.batch + column * self.number)
        for m in range(first, last):
            for byte in range(0, columns * self.number, CACHE_LINE):
                prefetch[options](start.unsafe_offset(m * self.row + byte))


@fieldwise_init
struct Places(Copyable, ImplicitlyCopyable, Movable):
    """Where results go, and what is read with them there."""

    var results: Place
    var beside: Place

    @always_inline
    def fetch(self, b: Int, first: Int, last: Int, column: Int, columns: Int):
        """Columns of rows first..last, which are used soon."""
        self.results.fetch[TO_WRITE](b, first, last, column, columns)
        self.beside.fetch[TO_READ](b, first, last, column, columns)
