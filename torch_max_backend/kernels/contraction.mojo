"""Sums of products: output[b, m, n] = sum over s and k of left[b, m, s, k] * right[b, n, s, k].

The output is cut into tasks, a panel of columns by some blocks of rows. A worker packs the right
operand of its task's panel; it, a block of the left one and their sums stay in cache (Goto and van
de Geijn, 2008). Rows of the left operand need not follow each other:
each of their segments is found through a table (the indirect convolution of Dukhan, 2019).
"""

from std.math import ceildiv
from std.memory import Pointer
from std.memory.alloc import unsafe_alloc
from std.runtime import parallelism_level
from std.sys import simd_width_of, size_of
from max.algorithm import sync_parallelize
from .fetching import Ahead, Places
from .packing import split_row
from .tasks import Tasks, Turn, WORKER_PARTS
from .units import *

comptime TILES = 64 // (VECTORS * simd_width_of[DType.float32]())
"""Tiles beside each other in a panel, for which rows of the left operand stay in the first cache."""
comptime PANEL[dtype: DType] = TILES * VECTORS * WIDTH[dtype] * PARTS[dtype]
"""Columns of a panel; more where rows are split anew for each."""
comptime BLOCK_ROWS = 16 * ROWS
"""Rows of a block, at most."""
comptime TASK_BLOCKS = 8
"""Blocks of BLOCK_ROWS rows in a task, at most, which panels in turn find in a cache."""
comptime SHARE_BLOCKS = 2
"""Blocks of rows that are worth packing a panel for, where each worker keeps to rows of its own;
one is where panels are packed before, or made from a cache."""
comptime CACHED_BYTES = 640 << 10
"""Of a right operand that is still in a cache when a second worker packs it."""
comptime BLOCK_LINES = 512
"""Lines of the panel that are summed up at a time."""
comptime FETCH_LINES = 4
"""Lines of the panel between the fetches of a line of the cache."""
comptime Store[dtype: DType] = def[width: Int](Int, Int, Int, SIMD[SUM[dtype], width]) -> None
"""Takes the results from (batch, row, column) on; what is fused into the product happens there. A
row's columns of a panel come in order, from one worker."""
comptime Table = Pointer[BytePointer, MutUntrackedOrigin]
"""Where the segments of rows start, a row after the other."""


@fieldwise_init
struct Extents(Copyable, ImplicitlyCopyable, Movable):
    """The sizes of a contraction; ``depth`` is what a segment holds, in numbers."""

    var batch: Int
    var rows: Int
    var columns: Int
    var segments: Int
    var depth: Int

    def is_empty(self) -> Bool:
        return self.batch * self.rows * self.columns == 0


trait Operands(Copyable, ImplicitlyCopyable, Movable, Deinitable):
    """Where a contraction finds its numbers."""

    def extents(self) -> Extents:
        ...

    def left(self, b: Int, first: Int, last: Int, zeros: BytePointer, table: Table):
        """Fills in the segments of rows first..last; ``zeros`` is one that holds nothing else."""
        ...

    def right_at(self, b: Int, column: Int, columns: Int) -> Ahead:
        """Columns of the right operand where they follow each other in memory, else nothing."""
        ...

    def is_packed(self) -> Bool:
        """Whether panels lie in memory as tiles read them."""
        ...

    def panel(self, b: Int, column: Int, columns: Int, scratch: BytePointer) -> BytePointer:
        """Columns of the right operand in the order in which tiles read them: lines of (segment,
        depth), of PANEL columns each, filled up with zeros to whole vectors. Where they do not lie
        in memory so, they are packed into the scratch."""
        ...


def panel_bytes[dtype: DType](segments: Int, depth: Int) -> Int:
    """What a panel takes that was packed before, of a type that the processor multiplies whole."""
    comptime assert PARTS[dtype] == 1, "the processor does not multiply this type whole"
    return segments * lines_of[dtype](depth) * PANEL[dtype] * size_of[UNIT[dtype]]()


def contract[
    dtype: DType, Source: Operands, Epilogue: Store[dtype]
](source: Source, places: Places, store: Epilogue):
    """Computes all of it, in parallel, and hands each number to ``store`` once."""
    if source.extents().is_empty():
        return
    var workers = parallelism_level()
    var shares = Shares[dtype](source.extents(), source.is_packed(), workers)

    def work(worker: Int) {source, shares, places, imm store}:
        shares.contract(source, worker, places, store)

    sync_parallelize(work, workers)
    shares.tasks.free()


struct Shares[dtype: DType](Copyable, ImplicitlyCopyable, Movable):
    """The output of a contraction as tasks of workers: a panel by a chunk of ``rows`` each, a part
    of it ``height`` of them."""

    var size: Extents
    var panels: Int
    var chunks: Int
    var rows: Int
    var height: Int
    var tasks: Tasks

    def __init__(out self, size: Extents, packed: Bool, workers: Int):
        self.size = size
        self.panels = ceildiv(size.columns, PANEL[Self.dtype])
        var blocks = ceildiv(size.rows, BLOCK_ROWS)
        var right_bytes = size.columns * size.segments * size.depth * size_of[Self.dtype]()
        var cheap = packed or right_bytes <= CACHED_BYTES
        var share_blocks = 1 if cheap else SHARE_BLOCKS
        var shares = max(1, size.rows // (share_blocks * BLOCK_ROWS))
        shares = min(shares, ceildiv(workers, size.batch))
        self.chunks = ceildiv(ceildiv(blocks, TASK_BLOCKS), shares) * shares
        var balanced = ceildiv(WORKER_PARTS * workers, size.batch * self.panels)
        blocks = max(blocks, min(balanced, ceildiv(size.rows, 2 * ROWS)))
        self.rows = _whole_tiles(size.rows, self.chunks)
        self.height = _whole_tiles(self.rows, ceildiv(blocks, self.chunks))
        var parts = ceildiv(self.rows, self.height)
        self.tasks = Tasks(size.batch * self.chunks * self.panels, parts, workers)

    def contract[
        Source: Operands, Epilogue: Store[Self.dtype]
    ](self, source: Source, worker: Int, places: Places, store: Epilogue):
        """A worker's share, and what it can take of others'."""
        comptime columns = PANEL[Self.dtype]
        var scratch = Scratch[Self.dtype](self.size)
        var turn = Turn(self.tasks, worker)
        while turn.next_task():
            _task[Self.dtype](
                source,
                scratch,
                turn,
                turn.task // self.panels // self.chunks,
                turn.task % self.panels * columns,
                turn.task // self.panels % self.chunks * self.rows,
                self.rows,
                self.height,
                (turn.task + 1) % self.panels * columns,
                places,
                store,
            )
        scratch.free()


def _whole_tiles(rows: Int, count: Int) -> Int:
    """The rows of each of ``count`` pieces of whole tiles that hold ``rows``."""
    return ceildiv(ceildiv(rows, count), ROWS) * ROWS


struct Scratch[dtype: DType](Movable):
    """What a worker needs at a time: a packed panel, the sums and the table of a block, the lines
    of a tile's rows where they are split, zeros; and the panel in use, packed here or not."""

    var size: Extents
    var lines: Int
    var packed: UnitPointer[Self.dtype]
    var panel: UnitPointer[Self.dtype]
    var sums: SumPointer[Self.dtype]
    var split: UnitPointer[Self.dtype]
    var zeros: BytePointer
    var table: Table

    def __init__(out self, size: Extents):
        comptime Unit = Scalar[UNIT[Self.dtype]]
        self.size = size
        self.lines = lines_of[Self.dtype](size.depth)
        var packed = (size.segments * self.lines + 1) * PANEL[Self.dtype]  # and the excess
        var sums = BLOCK_ROWS * PANEL[Self.dtype]
        var split = ROWS * BLOCK_LINES if PARTS[Self.dtype] > 1 else 0
        self.packed = unsafe_alloc[Unit](packed + sums + split + self.lines, alignment=64)
        self.panel = self.packed
        self.sums = self.packed.unsafe_offset(packed).unsafe_bitcast[Scalar[SUM[Self.dtype]]]()
        self.split = self.packed.unsafe_offset(packed + sums)
        var zeros = self.split.unsafe_offset(split)
        for i in range(self.lines):
            zeros[unsafe_offset=i] = 0
        self.zeros = zeros.unsafe_bitcast[UInt8]()
        self.table = unsafe_alloc[BytePointer](BLOCK_ROWS * size.segments)

    def excess_at(self, vector: Int) -> SumPointer[Self.dtype]:
        """Where the excess of a vector of the panel's columns is, below what is packed."""
        return self.packed.unsafe_offset(
            self.size.segments * self.lines * PANEL[Self.dtype] + vector * WIDTH[Self.dtype]
        ).unsafe_bitcast[Scalar[SUM[Self.dtype]]]()

    def free(self):
        self.packed.unsafe_free()
        self.table.unsafe_free()


@always_inline
def _task[
    dtype: DType, Source: Operands, Epilogue: Store[dtype]
](
    source: Source,
    mut scratch: Scratch[dtype],
    mut turn: Turn,
    b: Int,
    column: Int,
    first: Int,
    rows: Int,
    height: Int,
    following: Int,
    places: Places,
    store: Epilogue,
):
    """The panel from ``column`` on times the worker's parts of a task, blocks of ``height`` of its
    ``rows`` from the ``first`` one on; what the panel from ``following`` on is made from is read
    meanwhile."""
    comptime width = WIDTH[dtype]
    var columns = min(PANEL[dtype], scratch.size.columns - column)
    scratch.panel = source.panel(
        b, column, columns, scratch.packed.unsafe_bitcast[UInt8]()
    ).unsafe_bitcast[Scalar[UNIT[dtype]]]()
    comptime if dtype == DType.int8:
        _sum_up_excess[dtype](scratch, ceildiv(columns, width))
    var ahead = source.right_at(b, following, min(PANEL[dtype], scratch.size.columns - following))
    var last = min(scratch.size.rows, first + rows)
    var more = True
    while more:
        var row = first + turn.part * height  # the last task's last ones may be beyond all rows
        var end = min(last, row + height)
        source.left(b, row, end, scratch.zeros, scratch.table)

        @always_inline
        def expect(first: Int, last: Int) {b, row, column, columns, places}:
            places.fetch(b, row + first, row + last, column, columns)

        @always_inline
        def hand_on(first: Int, last: Int) {b, row, column, columns, scratch, imm store}:
            for m in range(first, last):
                var line = scratch.sums.unsafe_offset(m * PANEL[dtype])
                var n = 0
                while n + width <= columns:
                    store[width](b, row + m, column + n, line.unsafe_load[width=width](n))
                    n += width
                while n < columns:
                    store[1](b, row + m, column + n, line.unsafe_load[width=1](n))
                    n += 1

        _block[dtype](scratch, ceildiv(columns, width), end - row, ahead, expect, hand_on)
        more = turn.next_part()


def _sum_up_excess[dtype: DType](scratch: Scratch[dtype], vectors: Int):
    for v in range(vectors):
        var total = Sums[dtype](0)
        for line in range(scratch.size.segments * scratch.lines):
            var place = line * PANEL[dtype] + v * WIDTH[dtype]
            total = excess[dtype](total, scratch.panel.unsafe_load[width=WIDTH[dtype]](place))
        scratch.excess_at(v).unsafe_store(0, total)


@fieldwise_init
struct Chunk(Copyable, ImplicitlyCopyable, Movable):
    """What is summed up at a time: segments first..last, of each the lines start..end."""

    var first: Int
    var last: Int
    var start: Int
    var end: Int

    def is_first(self) -> Bool:
        return self.first == 0 and self.start == 0


def _block[
    dtype: DType, Before: def(Int, Int) -> None, After: def(Int, Int) -> None
](
    scratch: Scratch[dtype],
    vectors: Int,
    rows: Int,
    mut ahead: Ahead,
    expect: Before,
    hand_on: After,
):
    """The rows of the table times the panel."""
    var segments = scratch.size.segments
    var together = max(1, BLOCK_LINES // max(1, scratch.lines))
    for segment in range(0, segments, together):
        for start in range(0, max(1, scratch.lines), BLOCK_LINES):
            var chunk = Chunk(
                segment,
                min(segments, segment + together),
                start,
                min(scratch.lines, start + BLOCK_LINES),
            )
            var last = chunk.last == segments and chunk.end == scratch.lines
            for m in range(0, rows, ROWS):
                if last:
                    expect(m, min(rows, m + ROWS))
                comptime if PARTS[dtype] > 1:
                    _split[dtype](scratch, m, rows, chunk)
                for vector in range(0, vectors, VECTORS):
                    comptime for present in range(1, VECTORS + 1):
                        if min(VECTORS, vectors - vector) == present:
                            _tile[dtype, present](scratch, m, rows, vector, chunk, ahead)
                if last:
                    hand_on(m, min(rows, m + ROWS))


def _split[dtype: DType](scratch: Scratch[dtype], m: Int, rows: Int, chunk: Chunk):
    """The lines of a tile's rows, BLOCK_LINES for each; those of the last row again where there
    are fewer."""
    comptime UNIT_BYTES = size_of[UNIT[dtype]]()
    var start = chunk.start // PARTS[dtype] * UNIT_BYTES
    var end = min(scratch.size.depth * size_of[dtype](), chunk.end // PARTS[dtype] * UNIT_BYTES)
    for i in range(ROWS):
        var row = scratch.table.unsafe_offset(min(m + i, rows - 1) * scratch.size.segments)
        var target = scratch.split.unsafe_offset(i * BLOCK_LINES)
        for s in range(chunk.first, chunk.last):
            split_row[dtype](
                row[unsafe_offset=s].unsafe_offset(start),
                (end - start) // size_of[dtype](),
                target.unsafe_offset((s - chunk.first) * scratch.lines),
            )


@always_inline
def _tile[
    dtype: DType, vectors: Int
](
    scratch: Scratch[dtype],
    m: Int,
    rows: Int,
    vector: Int,
    chunk: Chunk,
    mut ahead: Ahead,
):
    """ROWS rows times vectors of the panel over a chunk; adds to what was summed up before."""
    comptime width = WIDTH[dtype]
    comptime stride = PANEL[dtype]
    comptime Unit = Scalar[UNIT[dtype]]
    var segments = scratch.size.segments
    var whole = scratch.lines  # lines whose numbers may be read as units
    comptime if PARTS[dtype] == 1:
        whole = scratch.size.depth * size_of[dtype]() // size_of[Unit]()
    var sums = Array[Sums[dtype], ROWS * vectors](fill=Sums[dtype](0))
    var numbers = Array[UnitPointer[dtype], ROWS](uninitialized=True)
    for s in range(chunk.first, chunk.last):
        comptime for i in range(ROWS):  # the last row again where there are fewer
            comptime if PARTS[dtype] == 1:
                var row = scratch.table.unsafe_offset(min(m + i, rows - 1) * segments)
                numbers[i] = row[unsafe_offset=s].unsafe_bitcast[Unit]()
            else:
                var place = i * BLOCK_LINES + (s - chunk.first) * scratch.lines - chunk.start
                numbers[i] = scratch.split.unsafe_offset(place)
        var right = scratch.panel.unsafe_offset(
            (s * scratch.lines + chunk.start) * stride + vector * width
        )
        var line = chunk.start
        while line + FETCH_LINES <= min(whole, chunk.end):
            ahead.fetch()
            comptime for _ in range(FETCH_LINES):
                _step[dtype, vectors](sums, numbers, line, right)
                right = right.unsafe_offset(stride)
                line += 1
        for rest in range(line, min(whole, chunk.end)):
            _step[dtype, vectors](sums, numbers, rest, right)
            right = right.unsafe_offset(stride)
        if whole < chunk.end:
            var left = Array[Unit, ROWS](uninitialized=True)
            comptime for i in range(ROWS):
                var row = numbers[i].unsafe_bitcast[UInt8]()
                left[i] = unit_at[dtype](row, whole, scratch.size.depth)
            multiply_step[dtype, ROWS, vectors](sums, left, right)
    comptime if dtype == DType.int8:
        if chunk.is_first():
            comptime for j in range(vectors):
                var over = scratch.excess_at(vector + j).unsafe_load[width=width]()
                comptime for i in range(ROWS):
                    sums[i * vectors + j] -= over
    var target = scratch.sums.unsafe_offset(m * stride + vector * width)
    comptime for i in range(ROWS):
        comptime for j in range(vectors):
            var place = i * stride + j * width
            if not chunk.is_first():
                sums[i * vectors + j] += target.unsafe_load[width=width](place)
            target.unsafe_store(place, sums[i * vectors + j])


@always_inline
def _step[
    dtype: DType, vectors: Int
](
    mut sums: Array[Sums[dtype], ROWS * vectors],
    numbers: Array[UnitPointer[dtype], ROWS],
    line: Int,
    right: UnitPointer[dtype],
):
    """A line of each row times one of the panel."""
    var left = Array[Scalar[UNIT[dtype]], ROWS](uninitialized=True)
    comptime for i in range(ROWS):
        left[i] = numbers[i].unsafe_load[alignment = size_of[dtype]()](line)
    multiply_step[dtype, ROWS, vectors](sums, left, right)
