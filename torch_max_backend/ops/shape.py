"""Axes, reshapes, slices: bodies that move data and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from max.dtype import DType
from max.graph import DeviceRef, Dim, StaticDim, TensorType, TensorValue, ops

from torch_max_backend.context import expected_shape, real_tensors
from torch_max_backend.dims import IntLike, dim_value, known_as, static, symbol_for
from torch_max_backend.dtypes import to_torch
from torch_max_backend.ops.constants import tensor_constant
from torch_max_backend.promotion import Operand, as_tensor
from torch_max_backend.scalars import Number, number_of

_NO_LIMIT = 1 << 62
_LARGEST_CONSTANT = 1 << 20
"""Elements of a constant: MAX would compute it while compiling, by compiling kernels for that."""
_LARGEST_FILL = 1 << 14
"""Elements of a constant that is one number: beyond it reading them would cost time."""


def normalize_dim(dim: int, rank: int) -> int:
    """A non-negative axis; a 0-d tensor has the one axis 0, as torch counts."""
    return dim % max(rank, 1)


def normalize_dims(dims: int | Sequence[int] | None, rank: int) -> list[int]:
    """Sorted axes; None or an empty list = all."""
    if isinstance(dims, int):
        dims = [dims]
    if not rank:
        return []
    return sorted(d % rank for d in dims) if dims else list(range(rank))


def drop_axes(x: TensorValue, dims: Sequence[int]) -> TensorValue:
    """Removes axes of size 1."""
    return ops.reshape(x, [d for i, d in enumerate(x.shape) if i not in dims])


def view(x: TensorValue) -> TensorValue:
    """Reshapes to the shape that torch computed for this node."""
    return reshape(x, expected_shape())


def reshape(x: TensorValue, shape: Sequence[IntLike]) -> TensorValue:
    """Reshapes; a -1 takes what is left.

    MAX proves that the element counts agree by the form of their products. Where the forms differ
    (2 * (n // 2) against n, several symbolic axes) every size gets a symbol of its own and the flat
    tensor is rebound to the other product, which is checked when it runs.
    """
    target = _without_minus_one([Dim(d) for d in shape], x.shape)
    try:
        return ops.reshape(x, target)
    except ValueError:
        if Dim(-1) in target or all(isinstance(d, StaticDim) for d in [*target, *x.shape]):
            raise
    sizes, wanted = ([symbol_for(d) for d in dims] for dims in (list(x.shape), target))
    flat = ops.reshape(ops.rebind(x, sizes), [element_count(sizes)])
    flat = ops.rebind(flat, [element_count(wanted)], "a reshape changes the element count")
    return ops.rebind(ops.reshape(flat, wanted), target)


def _without_minus_one(target: list[Dim], sizes: Iterable[Dim]) -> list[Dim]:
    """The target with what -1 stands for, where its other sizes are some of the tensor's own."""
    if Dim(-1) not in target:
        return target
    rest = list(sizes)
    for size in target:
        if size in rest:
            rest.remove(size)
        elif size != Dim(-1):
            return target
    return [element_count(rest) if size == Dim(-1) else size for size in target]


def element_count(dims: Iterable[IntLike]) -> Dim:
    """The product of sizes."""
    result = Dim(1)
    for dim in dims:
        result = result * dim
    return result


def expand(x: TensorValue) -> TensorValue:
    """Broadcasts to the shape that torch computed for this node."""
    return broadcast(x, expected_shape())


def broadcast(x: TensorValue, shape: Sequence[IntLike]) -> TensorValue:
    """Broadcasts to a shape; leading axes are added."""
    target = [Dim(d) for d in shape]
    x = agree(x, target)
    return x if list(x.shape) == target else ops.broadcast_to(x, target)


def filled(
    value: Operand, shape: Sequence[IntLike], dtype: DType, device: DeviceRef
) -> TensorValue:
    """One number in every place.

    As a small constant where all is known: for a kernel that is not element-wise MAX would make
    the same constant, by compiling a kernel for that.
    """
    sizes = [n for n in map(static, shape) if n is not None]
    known = isinstance(value, Number) and 0 < len(sizes) == len(shape)
    if known and math.prod(sizes) <= _LARGEST_FILL:
        with real_tensors():
            return tensor_constant(torch.full(sizes, value, dtype=to_torch(dtype)), device)
    return broadcast(as_tensor(value, dtype, device), shape)


def agree(x: TensorValue, shape: Sequence[Dim]) -> TensorValue:
    """x with the sizes of ``shape``, right-aligned, where only a run can tell that they are equal.

    torch's guards have compared them; MAX compares them again in each run.
    """
    sizes = list(x.shape)
    for i, (have, want) in enumerate(zip(reversed(sizes), reversed(shape), strict=False)):
        symbolic = static(have) is None or static(want) is None
        if symbolic and have != want and Dim(1) not in (have, want):
            sizes[-1 - i] = want
    if sizes == list(x.shape):
        return x
    return ops.rebind(x, sizes, "a size differs from the one it was compiled to equal")


def permute(x: TensorValue, dims: Sequence[int]) -> TensorValue:
    """Permutes the axes; the identity costs nothing."""
    order = [d % x.rank for d in dims] if x.rank else []
    return x if order == list(range(x.rank)) else ops.permute(x, order)


def permuted_copy(x: TensorValue, order: Sequence[int]) -> TensorValue:
    """Permutes the axes for an operator that reads its operand as it lies in memory.

    By our kernel on CPU, since graphs may begin with it: see kernels/permutation.mojo.
    """
    if not x.device.is_cpu():
        return permute(x, order)
    kind = TensorType(x.dtype, [x.shape[axis] for axis in order], x.device)
    axes = ops.constant(np.array(order, np.int64), DType.int64, x.device)
    return ops.custom("torch_max_backend.permute", x.device, [x, axes], [kind])[0].tensor


def slice_axis(
    x: TensorValue,
    axis: int,
    start: IntLike | TensorValue | None,
    stop: IntLike | TensorValue | None,
    step: int,
    size: IntLike,
) -> TensorValue:
    """``x[..., start:stop:step, ...]`` along one axis with torch's clamping.

    ``size`` is the size of the result along the axis.
    """
    length = x.shape[axis]
    if Dim(size) == length and step == 1:
        return x  # a slice that keeps every element
    before: list = [slice(None)] * axis
    after: list = [slice(None)] * (x.rank - axis - 1)
    n = static(length)
    if n is not None and all(b is None or isinstance(b, int) for b in (start, stop)):
        first, last, _ = slice(start, stop).indices(n)
        return ops.slice_tensor(x, [*before, slice(first, max(first, last), step), *after])
    if not isinstance(start, TensorValue) and not isinstance(stop, TensorValue):
        begin, end = _unclamped(start, length, Dim(0)), _unclamped(stop, length, length)
        if known_as((end - begin + (step - 1)) // step) == Dim(size):  # torch did not clamp them
            return ops.slice_tensor(x, [*before, slice(begin, end, step), *after])
    low, high = _bound(start, length, 0), _bound(stop, length, None)
    bounds = slice(low, high if number_of(low) == 0 else ops.max(high, low), step)
    return ops.slice_tensor(x, [*before, (bounds, Dim(size)), *after])


def _unclamped(bound: IntLike | None, length: Dim, default: Dim) -> Dim:
    """A slice bound as a size."""
    if bound is None or (isinstance(bound, int) and bound >= _NO_LIMIT):
        return default if bound is None else length
    return length + bound if isinstance(bound, int) and bound < 0 else Dim(bound)


def _bound(bound: IntLike | TensorValue | None, length: Dim, default: int | None) -> TensorValue:
    """A slice bound as a value in [0, length]."""
    whole = dim_value(length)
    if bound is None:
        return whole if default is None else dim_value(default)
    if isinstance(bound, int):
        if bound >= _NO_LIMIT:
            return whole
        n = static(length)
        if n is not None:
            return dim_value(slice(bound, None).indices(n)[0])
        if bound >= 0:
            return ops.min(dim_value(bound), whole)
        value = whole + bound
    else:
        value = bound if isinstance(bound, TensorValue) else dim_value(bound)
        value = ops.where(value < 0, value + whole, value)
    return ops.min(ops.max(value, dim_value(0)), whole)


def select(x: TensorValue, dim: int, index: IntLike | TensorValue) -> TensorValue:
    """``x.select(dim, index)``."""
    axis = normalize_dim(dim, x.rank)
    length = static(x.shape[axis])
    if isinstance(index, int) and (length is not None or index >= 0):
        at = index % length if length is not None else index
        one = (
            ops.slice_tensor(
                x, [slice(None)] * axis + [slice(at, at + 1)] + [slice(None)] * (x.rank - axis - 1)
            )
            if length is not None
            else slice_axis(x, axis, at, at + 1, 1, 1)
        )
        return drop_axes(one, [axis])
    whole = dim_value(x.shape[axis])
    if isinstance(index, int):
        value = whole + index
    else:
        value = index if isinstance(index, TensorValue) else dim_value(index)
        value = ops.where(value < 0, value + whole, value)
    at_device = ops.reshape(value, [1]).to(x.device)
    return drop_axes(ops.gather(x, at_device, axis), [axis])


def split(x: TensorValue, sizes: Sequence[IntLike], dim: int) -> list[TensorValue]:
    """Consecutive pieces of the given sizes."""
    axis = normalize_dim(dim, x.rank)
    counts = [static(size) for size in sizes]
    if None not in counts and static(x.shape[axis]) is not None and len(counts) > 1:
        return list(ops.split(x, [c for c in counts if c is not None], axis))
    pieces: list[TensorValue] = []
    start: IntLike = 0
    for size in sizes:
        pieces.append(slice_axis(x, axis, start, start + size, 1, size))
        start = start + size
    return pieces


def concat(tensors: Sequence[TensorValue], dim: int) -> TensorValue:
    """Concatenates; empty 1-d tensors are skipped, as torch has done since its first release."""
    kept = [t for t in tensors if not (t.rank == 1 and static(t.shape[0]) == 0)]
    if not kept:
        return tensors[0]
    if len(kept) == 1:
        return kept[0]
    axis = normalize_dim(dim, kept[0].rank)
    return join([_agree_but(t, kept[0], axis) for t in kept], axis)


def join(tensors: Sequence[TensorValue], axis: int) -> TensorValue:
    """Concatenates tensors of one rank and dtype that agree but along the axis.

    By our kernel on CPU: MAX 26.6 fuses a widening cast into its own, and gives wrong numbers where
    the narrow result is used too.
    """
    first = tensors[0]
    if not first.device.is_cpu():
        return ops.concat(tensors, axis)
    axis %= first.rank
    lead, trail = list(first.shape)[:axis], list(first.shape)[axis + 1 :]
    outer, inner = element_count(lead), element_count(trail)
    flat = [reshape(t, [outer, t.shape[axis], inner]) for t in tensors]
    total = Dim(0)
    for t in tensors:
        total = total + t.shape[axis]
    kind = TensorType(first.dtype, [outer, total, inner], first.device)
    out = ops.custom("torch_max_backend.concat", first.device, flat, [kind])[0].tensor
    return reshape(out, [*lead, total, *trail])


def stack(tensors: Sequence[TensorValue], axis: int) -> TensorValue:
    """Concatenates along a new axis."""
    axis %= tensors[0].rank + 1
    return join([ops.unsqueeze(t, axis) for t in tensors], axis)


def _agree_but(x: TensorValue, other: TensorValue, axis: int) -> TensorValue:
    """x with the sizes of ``other`` but along ``axis``."""
    sizes = list(other.shape)
    sizes[axis] = x.shape[axis]
    return agree(x, sizes)


def roll(x: TensorValue, shifts: Sequence[IntLike], dims: Sequence[int]) -> TensorValue:
    """Rolls elements along axes; without axes, of the flattened tensor."""
    if not dims:
        flat = reshape(x, [-1])
        return reshape(roll(flat, shifts, [0]), list(x.shape))
    for shift, dim in zip(shifts, dims, strict=True):
        axis = normalize_dim(dim, x.rank)
        size = x.shape[axis]
        n = static(size)
        if n == 0:
            continue
        if n is not None and isinstance(shift, int):
            cut: IntLike = (-shift) % n
            if cut == 0:
                continue
        else:
            cut = -shift if isinstance(shift, int) and shift < 0 else size - shift
        head = slice_axis(x, axis, 0, cut, 1, cut)
        tail = slice_axis(x, axis, cut, None, 1, size - cut)
        x = ops.rebind(join([tail, head], axis), list(x.shape))
    return x


def flip(x: TensorValue, dims: Sequence[int]) -> TensorValue:
    """Reverses axes (MAX slices take no negative step)."""
    for axis in normalize_dims(list(dims), x.rank) if dims else []:
        size = x.shape[axis]
        index = positions([size], [-1], size - 1, x.device)
        x = ops.gather(x, index, axis)
    return x


def diagonal_mask(rows: Dim, columns: Dim, diagonal: int, device) -> TensorValue:
    """Bool (rows, columns): True where column - row <= diagonal, the lower triangle."""
    height, width = static(rows), static(columns)
    if height is not None and width is not None and height * width <= _LARGEST_CONSTANT:
        return ops.constant(np.tri(height, width, diagonal, bool), DType.bool, device=device)
    i = iota(rows, device).reshape([rows, 1])
    j = iota(columns, device).reshape([1, columns])
    return j - i <= ops.constant(diagonal, DType.int64, device=device)


def iota(size: IntLike, device) -> TensorValue:
    """int64 0, 1, ..., size - 1."""
    count = static(size)
    if count is not None and count <= _LARGEST_CONSTANT:
        return ops.constant(np.arange(count), DType.int64, device=device)
    values = ops.range(
        dim_value(0),
        dim_value(size),
        dim_value(1),
        out_dim=Dim(size),
        dtype=DType.int64,
        device=dim_value(0).device,
    )
    return values if device.is_cpu() else values.to(device)


def positions(
    shape: Sequence[IntLike], strides: Sequence[IntLike], offset: IntLike, device: DeviceRef
) -> TensorValue:
    """int64 of a shape: ``offset + sum(index * stride)`` at each place."""
    known = [n for n in map(static, (*shape, *strides, offset)) if n is not None]
    sizes, steps = known[: len(shape)], known[len(shape) : -1]
    if len(known) == 2 * len(shape) + 1 and math.prod(sizes) <= _LARGEST_CONSTANT:
        places = np.full(sizes, known[-1])
        for step, index in zip(steps, np.indices(sizes), strict=True):
            places += step * index
        return ops.constant(places, DType.int64, device=device)
    begin = dim_value(offset).to(device)
    result = None if static(offset) == 0 else begin
    for axis, step in enumerate(strides):
        if step != 0:
            line: list[IntLike] = [1] * len(shape)
            line[axis] = shape[axis]
            index = reshape(iota(shape[axis], device), line)
            index = index if step == 1 else index * dim_value(step).to(device)
            result = index if result is None else result + index
    return broadcast(begin if result is None else result, shape)


def pad_constant(x: TensorValue, pad: Sequence[IntLike], value: object) -> TensorValue:
    """Pads (or, where negative, cuts) the last axes; ``pad`` lists pairs from the last axis on."""
    paddings = [0] * (2 * x.rank)
    for i in range(len(pad) // 2):
        axis = x.rank - 1 - i
        before, after = static(pad[2 * i]), static(pad[2 * i + 1])
        if before is None or after is None:
            x = _pad_axis(x, axis, pad[2 * i], value)
            continue
        if before < 0 or after < 0:
            length = x.shape[axis] + min(before, 0) + min(after, 0)
            first = max(-before, 0)
            x = slice_axis(x, axis, first, length + first, 1, length)
        paddings[2 * axis], paddings[2 * axis + 1] = max(before, 0), max(after, 0)
    if not any(paddings):
        return x
    kind = DType.uint8 if x.dtype == DType.bool else x.dtype
    fill = as_tensor(value, kind, DeviceRef.CPU())
    if x.dtype == DType.bool:
        return ops.cast(ops.pad(ops.cast(x, kind), paddings, value=fill), DType.bool)
    if any(static(d) == 0 for d in x.shape):
        return filled(value, expected_shape(), x.dtype, x.device)
    return ops.pad(x, paddings, value=fill)


def _pad_axis(x: TensorValue, axis: int, before: IntLike, value: object) -> TensorValue:
    """Pads or cuts one axis by symbolic sizes: each place takes its element or the one fill."""
    edge = [*list(x.shape)[:axis], 1, *list(x.shape)[axis + 1 :]]
    fill = filled(value, edge, x.dtype, x.device)
    places = iota(expected_shape()[axis], x.device) - dim_value(before).to(x.device)
    inside = ops.logical_and(places >= 0, places < dim_value(x.shape[axis]).to(x.device))
    index = ops.where(inside, places + 1, as_tensor(0, DType.int64, x.device))
    return ops.gather(join([fill, x], axis), index, axis)


def repeat(x: TensorValue, repeats: Sequence[IntLike]) -> TensorValue:
    """Tiles; leading axes are added."""
    shape: list[IntLike] = [*([1] * (len(repeats) - x.rank)), *x.shape]
    split = [d for size in shape for d in (1, size)]
    wide = [d for count, size in zip(repeats, shape, strict=True) for d in (count, size)]
    out = broadcast(reshape(x, split), wide)
    return reshape(out, [Dim(c) * Dim(s) for c, s in zip(repeats, shape, strict=True)])


def triangle(x: TensorValue, diagonal: IntLike, *, lower: bool) -> TensorValue:
    """The lower or upper triangle of the last two axes, zeros elsewhere."""
    offset = static(diagonal)
    if offset is None:
        raise NotImplementedError("a symbolic diagonal; make it static")
    rows, columns = x.shape[-2], x.shape[-1]
    keep = diagonal_mask(rows, columns, offset if lower else offset - 1, x.device)
    zero = as_tensor(0, x.dtype, x.device)
    return ops.where(keep, x, zero) if lower else ops.where(keep, zero, x)


def diagonal(x: TensorValue, offset: int, dim1: int, dim2: int) -> TensorValue:
    """The diagonal of two axes as the last axis."""
    rows, columns = normalize_dim(dim1, x.rank), normalize_dim(dim2, x.rank)
    rest = [i for i in range(x.rank) if i not in (rows, columns)]
    x = permute(x, [*rest, rows, columns])
    height, width = list(x.shape)[-2:]
    x = reshape(x, [*list(x.shape)[:-2], height * width])
    first = Dim(offset) if offset >= 0 else width * -offset
    index = positions([expected_shape()[-1]], [width + 1], first, x.device)
    return ops.gather(x, index, x.rank - 1)


def unfold(x: TensorValue, dimension: int, size: int, step: int) -> TensorValue:
    """Windows of ``size`` along an axis, ``step`` apart; their elements are the last axis."""
    if not x.rank:
        return reshape(x, [size])
    axis = normalize_dim(dimension, x.rank)
    index = positions([expected_shape()[axis], size], [step, 1], 0, x.device)
    out = ops.gather(x, index, axis)
    return permute(out, [*(i for i in range(out.rank) if i != axis + 1), axis + 1])


def crop_to(x: TensorValue, other: TensorValue) -> TensorValue:
    """The leading part of x that has the shape of other."""
    for axis, size in enumerate(other.shape):
        x = slice_axis(x, axis, 0, size, 1, size)
    return x


def write_slice(
    x: TensorValue, source: TensorValue, axis: int, start: IntLike, step: int, count: IntLike
) -> TensorValue:
    """x with ``source`` in place of ``x[start : start + count * step : step]`` along an axis."""
    size, begin = static(x.shape[axis]), static(start)
    order = [axis, *[i for i in range(x.rank) if i != axis]]
    if size is not None and begin is not None:
        first = min(max(begin + size if begin < 0 else begin, 0), size)
        index = positions([count, 1], [step, 0], first, x.device)
    else:
        length, value = dim_value(x.shape[axis]), dim_value(start)
        if begin is not None and begin < 0:
            value = ops.max(value + length, dim_value(0))
        value = ops.min(value, length).to(x.device)
        index = positions([count, 1], [step, 0], 0, x.device) + value
    out = ops.scatter_nd(permute(x, order), permute(source, order), index)
    return permute(out, sorted(range(x.rank), key=order.__getitem__))
