"""The self-attention of a transformer's block: a norm, queries, keys and values of its rows, attention,
a linear layer, the residual connection around them; in one parallel region, as mlp.mojo."""

from std.runtime import parallelism_level
from max.algorithm import sync_parallelize
from .attention import Attention, attend
from .contraction import Extents, Operands, Table
from .fetching import Ahead
from .layers import Layer
from .matmul import Product
from .normalization import Factors, Normalization
from .units import *


@fieldwise_init
struct Projections[dtype: DType, order: Int](Operands):
    """The products of queries, keys and values as one: their columns, as many of each and a multiple
    of PANEL, beside each other."""

    var queries: Product[Self.dtype, Self.order]
    var keys: BytePointer
    var values: BytePointer
    """Their weights."""

    def product_of(self, column: Int) -> Product[Self.dtype, Self.order]:
        var product = self.queries
        if column >= 2 * product.columns:
            product.right = self.values
        elif column >= product.columns:
            product.right = self.keys
        return product

    def extents(self) -> Extents:
        var one = self.queries.extents()
        return Extents(1, one.rows, 3 * one.columns, 1, one.depth)

    def left(self, b: Int, first: Int, last: Int, zeros: BytePointer, table: Table):
        self.queries.left(b, first, last, zeros, table)

    def right_at(self, b: Int, column: Int, columns: Int) -> Ahead:
        return self.product_of(column).right_at(b, column % self.queries.columns, columns)

    def is_packed(self) -> Bool:
        return self.queries.is_packed()

    def panel(self, b: Int, column: Int, columns: Int, scratch: BytePointer) -> BytePointer:
        var product = self.product_of(column)
        return product.panel(b, column % product.columns, columns, scratch)


def self_attention[
    dtype: DType, //, scaled: Bool
](
    norm: Normalization[dtype, _, _, _],
    projections: Layer[dtype, _],
    call: Attention[dtype],
    last: Layer[dtype, _],
    scale: Factors[_],
):
    """``projections`` read what ``norm`` writes, their results are the operands of ``call``, ``last``
    reads what comes of it and is added, perhaps times ``scale``, to the rows that are normalised."""
    if norm.rows.rows == 0:
        return
    var workers = parallelism_level()
    var normalized = norm.tasks(workers)
    var projected = projections.shares(workers)
    var heads = call.tasks(workers)
    var output = last.shares(workers)

    def work(
        worker: Int
    ) {norm, projections, call, last, scale, normalized, projected, heads, output}:
        norm.share(normalized, worker)
        normalized.wait()
        projections.activated["none"](projected, worker)
        projected.tasks.wait()
        attend(call, heads, worker)
        heads.wait()
        last.added[scaled](norm.rows.source, scale, output, worker)

    sync_parallelize(work, workers)
    normalized.free()
    projected.tasks.free()
    heads.free()
    output.tasks.free()
