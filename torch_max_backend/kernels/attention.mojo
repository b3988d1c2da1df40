"""Scaled dot-product attention (Vaswani et al., 2017).

A worker packs a head's keys and values once and goes through its queries a tile of rows at a time.
The scores of a tile against all keys stay in cache, so that softmax knows a row's maximum and is
exact.
"""

from std.math import ceildiv
from std.memory.alloc import unsafe_alloc
from std.runtime import parallelism_level
from std.sys import size_of
from max.algorithm import sync_parallelize
from .fetching import Place, TO_READ
from .packing import pack_columns, pack_rows, split_row
from .rotation import Rotation
from .rounding import rounded
from .softmax import softmax_rows
from .tasks import Tasks, Turn, WORKER_PARTS
from .units import *

comptime PART_TILES = 8
"""Tiles of queries that a worker takes at a time, at most."""


@fieldwise_init
struct Operand(Copyable, ImplicitlyCopyable, Movable):
    """A (batch, heads, length, width) tensor: its start, its strides in bytes; width is dense."""

    var data: BytePointer
    var batch: Int
    var head: Int
    var row: Int

    @staticmethod
    def of_rows(data: BytePointer, length: Int, row: Int, head: Int) -> Self:
        """Rows that follow each other, ``length`` of a batch, with their heads side by side."""
        return Self(data, length * row, head, row)

    def rows_of(self, b: Int, h: Int) -> BytePointer:
        return self.data.unsafe_offset(b * self.batch + h * self.head)

    def fetch(self, b: Int, h: Int, first: Int, last: Int, row_bytes: Int):
        """Has rows first..last on their way to the cache."""
        Place(self.rows_of(b, h), 0, self.row, 1).fetch[TO_READ](0, first, last, 0, row_bytes)


@fieldwise_init
struct Bias[dtype: DType](Copyable, ImplicitlyCopyable, Movable):
    """A float32 (batch, heads, queries, keys) tensor to be added to the scaled scores: strides in
    numbers, 0 where it is broadcast; keys are dense."""

    var data: SumPointer[Self.dtype]
    var present: Bool
    var batch: Int
    var head: Int
    var query: Int

    def row_of(self, b: Int, h: Int, i: Int) -> SumPointer[Self.dtype]:
        return self.data.unsafe_offset(b * self.batch + h * self.head + i * self.query)


@fieldwise_init
struct Attention[dtype: DType](Copyable, ImplicitlyCopyable, Movable):
    """One call: operands and sizes."""

    var query: Operand
    var key: Operand
    var value: Operand
    var query_rotation: Rotation
    var key_rotation: Rotation
    var bias: Bias[Self.dtype]
    var output: Operand
    var batch: Int
    var heads: Int
    var key_heads: Int
    var queries: Int
    var keys: Int
    var width: Int
    var value_width: Int
    var scale: Scalar[SUM[Self.dtype]]
    var causal: Bool
    var empty: Scalar[SUM[Self.dtype]]

    def key_head(self, h: Int) -> Int:
        """Of the keys and values that a head's queries meet."""
        return h // (self.heads // self.key_heads)

    def tasks(self, workers: Int) -> Tasks:
        """A head each, a part of it some tiles of queries."""
        var heads = self.batch * self.heads
        var tiles = ceildiv(self.queries, ROWS)
        var parts = max(ceildiv(tiles, PART_TILES), ceildiv(WORKER_PARTS * workers, max(1, heads)))
        return Tasks(heads, ceildiv(tiles, max(1, ceildiv(tiles, parts))), workers)


struct Scratch[dtype: DType](Movable):
    """What a worker needs at a time: a head's keys and values packed, a tile of queries, their
    scores, weights and results, and some rows that are rotated."""

    var keys: UnitPointer[Self.dtype]
    var values: UnitPointer[Self.dtype]
    var query: UnitPointer[Self.dtype]
    var scores: SumPointer[Self.dtype]
    var weights: UnitPointer[Self.dtype]
    var result: SumPointer[Self.dtype]
    var rotated: BytePointer
    var rotated_row: Int
    var depth: Int
    var key_stride: Int
    var value_stride: Int
    var places: Int

    def __init__(out self, call: Attention[Self.dtype]):
        comptime width = WIDTH[Self.dtype]
        self.depth = lines_of[Self.dtype](call.width)
        self.key_stride = ceildiv(call.keys, width) * width
        self.value_stride = ceildiv(call.value_width, width) * width
        self.places = lines_of[Self.dtype](self.key_stride)
        var query = ceildiv(ROWS * self.depth, width) * width
        var row = units_of[Self.dtype](call.width)
        self.rotated_row = row * size_of[UNIT[Self.dtype]]()
        self.keys = unsafe_alloc[Scalar[UNIT[Self.dtype]]](
            self.depth * self.key_stride
            + self.places * self.value_stride
            + query
            + ROWS * (2 * self.key_stride + self.value_stride)
            + max(ROWS, width) * row,
            alignment=64,
        )
        self.values = self.keys.unsafe_offset(self.depth * self.key_stride)
        self.query = self.values.unsafe_offset(self.places * self.value_stride)
        var scores = self.query.unsafe_offset(query)
        self.scores = scores.unsafe_bitcast[Scalar[SUM[Self.dtype]]]()
        self.weights = scores.unsafe_offset(ROWS * self.key_stride)
        var result = self.weights.unsafe_offset(ROWS * self.key_stride)
        self.result = result.unsafe_bitcast[Scalar[SUM[Self.dtype]]]()
        var rotated = result.unsafe_offset(ROWS * self.value_stride)
        self.rotated = rotated.unsafe_bitcast[UInt8]()

    def free(self):
        self.keys.unsafe_free()


def attention[dtype: DType](call: Attention[dtype]):
    """Computes all of it in parallel."""
    var workers = parallelism_level()
    var tasks = call.tasks(workers)

    def work(worker: Int) {call, tasks}:
        attend(call, tasks, worker)

    sync_parallelize(work, workers)
    tasks.free()


def attend[dtype: DType, //](call: Attention[dtype], tasks: Tasks, worker: Int):
    """A worker's share of the heads, and what it can take of others'."""
    var scratch = Scratch[dtype](call)
    var turn = Turn(tasks, worker)
    while turn.next_task():
        _rows_of_a_head[dtype](
            call, scratch, turn, turn.task // call.heads, turn.task % call.heads
        )
    scratch.free()


def _rows_of_a_head[
    dtype: DType
](call: Attention[dtype], scratch: Scratch[dtype], mut turn: Turn, b: Int, h: Int):
    """The worker's parts of a head's queries."""
    var key_head = call.key_head(h)
    _pack_keys[dtype](call, scratch, b, key_head)
    pack_rows[dtype](
        call.value.rows_of(b, key_head),
        call.value.row,
        call.keys,
        call.value_width,
        scratch.values,
        scratch.value_stride,
        scratch.places,
    )
    var rows = ceildiv(ceildiv(call.queries, ROWS), turn.tasks.parts) * ROWS
    var more = True
    while more:
        var first = turn.part * rows
        var last = min(call.queries, first + rows)
        for row in range(first, last, ROWS):
            _fetch_next_head[dtype](call, turn.task + 1, row, min(last, row + ROWS))
            _rows_of_a_tile[dtype](call, scratch, b, h, row, min(ROWS, last - row))
        more = turn.next_part()


def _fetch_next_head[
    dtype: DType
](call: Attention[dtype], task: Int, first: Int, last: Int):
    """Its queries first..last and the same share of its keys and values, which lie apart from each
    other, so that the processor does not foresee them."""
    comptime size = size_of[dtype]()
    if task == call.batch * call.heads:
        return
    var b = task // call.heads
    var h = task % call.heads
    call.query.fetch(b, h, first, last, call.width * size)
    var key_head = call.key_head(h)
    var start = first * call.keys // call.queries
    var end = last * call.keys // call.queries
    call.key.fetch(b, key_head, start, end, call.width * size)
    call.value.fetch(b, key_head, start, end, call.value_width * size)


def _pack_keys[
    dtype: DType
](call: Attention[dtype], scratch: Scratch[dtype], b: Int, h: Int):
    var source = call.key.rows_of(b, h)
    var stride = scratch.key_stride
    if not call.key_rotation.present:
        pack_columns[dtype](source, call.key.row, call.keys, call.width, scratch.keys, stride)
        return
    comptime width = WIDTH[dtype]
    for first in range(0, call.keys, width):
        var rows = min(width, call.keys - first)
        for i in range(rows):
            call.key_rotation.rotate[dtype](
                b,
                h,
                first + i,
                call.width,
                source.unsafe_offset((first + i) * call.key.row),
                scratch.rotated.unsafe_offset(i * scratch.rotated_row),
            )
        pack_columns[dtype](
            scratch.rotated,
            scratch.rotated_row,
            rows,
            call.width,
            scratch.keys.unsafe_offset(first),
            stride,
        )


def _rows_of_a_tile[
    dtype: DType
](call: Attention[dtype], scratch: Scratch[dtype], b: Int, h: Int, row: Int, present: Int):
    comptime width = WIDTH[dtype]
    var queries = call.query.rows_of(b, h)
    for i in range(ROWS):
        var place = row + min(i, present - 1)  # the last row again where there are fewer
        var query = queries.unsafe_offset(place * call.query.row)
        if call.query_rotation.present:
            call.query_rotation.rotate[dtype](b, h, place, call.width, query, scratch.rotated)
            query = scratch.rotated
        split_row[dtype](query, call.width, scratch.query.unsafe_offset(i * scratch.depth))
    var keys = min(call.keys, row + present) if call.causal else call.keys
    var padded = ceildiv(keys, width) * width
    var places = lines_of[dtype](keys)
    _multiply[dtype](
        scratch.query,
        scratch.depth,
        scratch.keys,
        scratch.key_stride,
        scratch.depth,
        padded // width,
        scratch.scores,
    )
    var kept = Array[Int, ROWS](fill=keys)
    var biases = Array[SumPointer[dtype], ROWS](uninitialized=True)
    comptime for i in range(ROWS):
        var place = row + min(i, present - 1)
        biases[i] = call.bias.row_of(b, h, place)
        if call.causal:
            kept[i] = min(keys, place + 1)
    var factors = softmax_rows[dtype](
        scratch.scores,
        scratch.key_stride,
        kept,
        padded,
        call.scale,
        biases,
        call.bias.present,
        call.empty,
        scratch.weights,
        scratch.places,
    )
    _multiply[dtype](
        scratch.weights,
        scratch.places,
        scratch.values,
        scratch.value_stride,
        places,
        scratch.value_stride // width,
        scratch.result,
    )
    for i in range(present):
        var target = call.output.rows_of(b, h).unsafe_offset((row + i) * call.output.row)
        _store_scaled[dtype](
            scratch.result.unsafe_offset(i * scratch.value_stride),
            factors[i],
            call.value_width,
            target.unsafe_bitcast[Scalar[dtype]](),
        )


@always_inline
def _store_scaled[
    dtype: DType
](
    numbers: SumPointer[dtype],
    factor: Scalar[SUM[dtype]],
    count: Int,
    target: Pointer[Scalar[dtype], MutUntrackedOrigin],
):
    comptime width = WIDTH[dtype]
    var c = 0
    while c + width <= count:
        var scaled = numbers.unsafe_load[width=width](c) * factor
        target.unsafe_store[alignment=2](c, rounded[dtype](scaled))
        c += width
    while c < count:
        target[unsafe_offset=c] = rounded[dtype, 1](numbers[unsafe_offset=c] * factor)
        c += 1


def _multiply[
    dtype: DType
](
    a: UnitPointer[dtype],
    a_stride: Int,
    b: UnitPointer[dtype],
    stride: Int,
    depth: Int,
    vectors: Int,
    target: SumPointer[dtype],
):
    """target = a (ROWS rows of ``depth`` lines) times b (``depth`` rows of vectors); b's rows and
    the target's have the same stride. In tiles of like widths: a narrow one would run slower."""
    var tiles = ceildiv(vectors, VECTORS)
    for tile in range(tiles):
        var first = tile * vectors // tiles
        comptime for width in range(1, VECTORS + 1):
            if (tile + 1) * vectors // tiles - first == width:
                _multiply_tile[dtype, width](a, a_stride, b, stride, depth, first, target)


@always_inline
def _multiply_tile[
    dtype: DType, vectors: Int
](
    a: UnitPointer[dtype],
    a_stride: Int,
    b: UnitPointer[dtype],
    stride: Int,
    depth: Int,
    first: Int,
    target: SumPointer[dtype],
):
    var sums = Array[Sums[dtype], ROWS * vectors](fill=Sums[dtype](0))
    var right = b.unsafe_offset(first * WIDTH[dtype])
    var left = Array[Scalar[UNIT[dtype]], ROWS](uninitialized=True)
    for u in range(depth):
        comptime for i in range(ROWS):
            left[i] = a[unsafe_offset=i * a_stride + u]
        multiply_step[dtype, ROWS, vectors](sums, left, right)
        right = right.unsafe_offset(stride)
    comptime for i in range(ROWS):
        comptime for j in range(vectors):
            target.unsafe_store(i * stride + (first + j) * WIDTH[dtype], sums[i * vectors + j])
