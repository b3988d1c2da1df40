"""The multilayer perceptron of a transformer's block: a norm, a linear layer with its activation,
another linear layer, the residual connection around them.

All of it in one parallel region: of a small model at batch 1 it takes as long to begin an operator
as to compute a norm.
"""

from std.runtime import parallelism_level
from max.algorithm import sync_parallelize
from .layers import Layer
from .normalization import Factors, Normalization


def mlp[
    dtype: DType, //, activation: StaticString, scaled: Bool
](
    norm: Normalization[dtype, _, _, _],
    first: Layer[dtype, _],
    second: Layer[dtype, _],
    scale: Factors[_],
):
    """``first`` reads what ``norm`` writes, ``second`` what ``first`` does; it is added,
    perhaps times ``scale``, to the rows that are normalised."""
    if norm.rows.rows == 0:
        return
    var workers = parallelism_level()
    var normalized = norm.tasks(workers)
    var hidden = first.shares(workers)
    var output = second.shares(workers)

    def work(worker: Int) {norm, first, second, scale, normalized, hidden, output}:
        norm.share(normalized, worker)
        normalized.wait()
        first.activated[activation](hidden, worker)
        hidden.tasks.wait()
        second.added[scaled](norm.rows.source, scale, output, worker)

    sync_parallelize(work, workers)
    normalized.free()
    hidden.tasks.free()
    output.tasks.free()
