"""Gathers, scatters and advanced indexing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from max.dtype import DType
from max.graph import Dim, TensorValue, ops

from torch_max_backend.context import constant_of, expected_shape, real_tensors
from torch_max_backend.dims import IntLike, dim_value, new_symbol, static
from torch_max_backend.ops.constants import tensor_constant
from torch_max_backend.ops.shape import (
    broadcast,
    normalize_dim,
    permute,
    positions,
    reshape,
    stack,
)


def as_index(index: TensorValue, size: Dim) -> TensorValue:
    """int64 indices with the negative ones counted from the end."""
    known = _known_index(index, size)
    if known is not None:
        return tensor_constant(known, index.device)
    index = index if index.dtype == DType.int64 else ops.cast(index, DType.int64)
    length = dim_value(size).to(index.device)
    return ops.where(index < 0, index + length, index)


def _known_index(index: TensorValue, size: Dim) -> torch.Tensor | None:
    """The numbers of ``as_index`` where they are known while compiling.

    MAX folds what is computed from constants too, by compiling a kernel for each operator.
    """
    constant = constant_of(index)
    if constant is None:
        return None
    with real_tensors():
        constant = constant.long()
        if not (constant < 0).any():
            return constant
        length = static(size)
        return None if length is None else torch.where(constant < 0, constant + length, constant)


def _points(
    indices: Sequence[TensorValue], sizes: Sequence[Dim], shape: Sequence[Dim]
) -> TensorValue:
    """(*shape, len(indices)): the indices of several axes, broadcast against each other."""
    known = [_known_index(index, size) for index, size in zip(indices, sizes, strict=True)]
    numbers = [index for index in known if index is not None]
    if len(numbers) == len(known):
        with real_tensors():
            points = torch.stack(torch.broadcast_tensors(*numbers), -1)
        return tensor_constant(points, indices[0].device)
    chosen = [as_index(index, size) for index, size in zip(indices, sizes, strict=True)]
    return stack([broadcast(index, shape) for index in chosen], -1)


def _coordinates_of_masks(indices: Sequence[TensorValue | None]) -> list[TensorValue | None]:
    """Bool masks as the coordinates of their True elements, one index per axis of the mask."""
    result: list[TensorValue | None] = []
    for index in indices:
        if index is None or index.dtype != DType.bool:
            result.append(index)
        elif index.rank == 0:
            raise NotImplementedError("indexing with a 0-d bool; use torch.where")
        else:
            found = ops.nonzero(index, new_symbol())
            result += [found[:, axis] for axis in range(index.rank)]
    return result


def index_tensor(x: TensorValue, indices: Sequence[TensorValue | None]) -> TensorValue:
    """``x[indices]`` with integers or masks; None keeps an axis whole (NumPy's rules).

    The axes of the broadcast indices stand where the indexed axes stood when these are adjacent,
    else in front.
    """
    indices = _coordinates_of_masks(indices)
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    chosen = [index for index in indices if index is not None]
    if len(axes) == 1:
        return ops.gather(x, as_index(chosen[0], x.shape[axes[0]]), axes[0])
    rest = [axis for axis in range(x.rank) if axis not in axes]
    rank = max(index.rank for index in chosen)
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    place = axes[0] if adjacent else 0
    shape = expected_shape()[place : place + rank]
    points = _points(chosen, [x.shape[axis] for axis in axes], shape)
    out = ops.gather_nd(permute(x, [*axes, *rest]), points)
    order = [*range(rank, rank + place), *range(rank), *range(rank + place, out.rank)]
    return permute(out, order)


def embedding(weight: TensorValue, indices: TensorValue) -> TensorValue:
    """Rows of a (n, width) table."""
    if indices.rank:
        return ops.gather(weight, indices, axis=0)
    row = ops.gather(weight, reshape(indices, [1]), axis=0)  # MAX's gather fails for a 0-d index
    return reshape(row, [weight.shape[1]])


def gather(x: TensorValue, dim: int, index: TensorValue) -> TensorValue:
    """``out[i][j] = x[index[i][j]][j]`` along an axis; index may be smaller in the others."""
    if not x.rank:
        return broadcast(x, list(index.shape))
    axis = normalize_dim(dim, x.rank)
    return ops.gather_nd(x, _coordinates(x, axis, index))


def _coordinates(x: TensorValue, axis: int, index: TensorValue) -> TensorValue:
    """(*index.shape, rank): where each element of ``index`` points in ``x``."""
    shape = list(index.shape)
    columns = [
        as_index(index, x.shape[axis])
        if i == axis
        else positions(shape, [int(j == i) for j in range(len(shape))], 0, x.device)
        for i in range(len(shape))
    ]
    return stack(columns, -1)


_SCATTERS = {
    None: ops.scatter_nd,
    "add": ops.scatter_nd_add,
    "multiply": ops.scatter_nd_mul,
}


def _scatter(
    x: TensorValue, source: TensorValue, coordinates: TensorValue, reduce: str | None
) -> TensorValue:
    if reduce is None or x.dtype != DType.bool:
        return _SCATTERS[reduce](x, source, coordinates)
    # MAX's atomic updates know no bool
    x, source = ops.cast(x, DType.int32), ops.cast(source, DType.int32)
    return _SCATTERS[reduce](x, source, coordinates) != 0


def scatter(
    x: TensorValue,
    dim: int,
    index: TensorValue,
    source: TensorValue,
    reduce: str | None = None,
) -> TensorValue:
    """``x`` with ``source`` written at ``x[index[i][j]][j]``, or added to it, or multiplied."""
    axis = normalize_dim(dim, x.rank)
    return _scatter(x, source, _coordinates(x, axis, index), reduce)


def index_put(
    x: TensorValue,
    indices: Sequence[TensorValue | None],
    values: TensorValue,
    accumulate: bool,
) -> TensorValue:
    """``x[indices] = values`` (or ``+=``) with integers or masks."""
    indices = _coordinates_of_masks(indices)
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    rest = [axis for axis in range(x.rank) if axis not in axes]
    chosen = [index for index in indices if index is not None]
    rank = max(index.rank for index in chosen)
    widest = [Dim(1)] * rank
    for index in chosen:
        for i, size in enumerate(reversed(list(index.shape))):
            if size != Dim(1):
                widest[rank - 1 - i] = size
    points = _points(chosen, [x.shape[axis] for axis in axes], widest)
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    place = axes[0] if adjacent else 0
    kept = [x.shape[axis] for axis in rest]
    full = broadcast(values, [*kept[:place], *widest, *kept[place:]])
    to_front = [*range(place, place + rank), *range(place), *range(place + rank, full.rank)]
    order = [*axes, *rest]
    reduce = "add" if accumulate else None
    out = _scatter(permute(x, order), permute(full, to_front), points, reduce)
    return permute(out, sorted(range(x.rank), key=order.__getitem__))


def nonzero(x: TensorValue, count: Dim) -> TensorValue:
    """(count, rank): the coordinates of the elements that are not zero, in row-major order."""
    if x.rank:
        return ops.nonzero(x, count)
    return ops.nonzero(reshape(x, [1]), count)[:, 0:0]


def as_strided(
    x: TensorValue, size: Sequence[IntLike], stride: Sequence[IntLike], offset: IntLike
) -> TensorValue:
    """Elements of the flattened x at ``offset + sum(index * stride)``.

    x counts as laid out in row-major order, as every value inside a graph is.
    """
    return ops.gather(reshape(x, [-1]), positions(size, stride, offset, x.device), axis=0)
