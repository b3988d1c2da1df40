"""Convolutions over (N, C, *spatial): MAX computes them channels-last."""

from __future__ import annotations

import math
from collections.abc import Sequence

from max.dtype import DType
from max.graph import Dim, TensorType, TensorValue, ops

from torch_max_backend.context import expected_shape, patch_grid
from torch_max_backend.dims import IntLike, dim_value, static
from torch_max_backend.ops.matmul import (
    linear_layer,
    matmul,
    product,
    takes_bfloat16,
)
from torch_max_backend.ops.rounding import cast
from torch_max_backend.ops.shape import drop_axes, join, permute, permuted_copy, reshape, slice_axis
from torch_max_backend.promotion import accumulation_dtype


def convolution(
    x: TensorValue,
    weight: TensorValue,
    bias: TensorValue | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> TensorValue:
    """aten.convolution in 1 to 3 dimensions; half precision accumulates in float32."""
    rank = x.rank - 2
    kernel = [int(k) for k in list(weight.shape)[2:]]
    # lists of one element stand for every axis
    stride, padding, dilation, output_padding = (
        list(values) * (rank if len(values) == 1 else 1)
        for values in (stride, padding, dilation, output_padding)
    )
    patches = kernel == stride and not any(padding) and groups == 1 and set(dilation) == {1}
    if patches and not transposed:
        grid = expected_shape()[2:]
        out = patch_rows(x, weight, bias, grid)
        out = reshape(out, [x.shape[0], *grid, weight.shape[0]])
        return permute(out, [0, rank + 1, *range(1, rank + 1)])
    if patches and not any(output_padding):
        return _unpatch(x, weight, bias, kernel)
    if transposed:
        return _transposed(x, weight, bias, stride, padding, dilation, output_padding, groups)
    return _direct(x, weight, bias, stride, [(p, p) for p in padding], dilation, groups)


def patch_embedding(x: TensorValue, weight: TensorValue, bias: TensorValue | None) -> TensorValue:
    """(N, C, *size) to (N, patches, O): one reshape and one matmul."""
    return reshape(patch_rows(x, weight, bias, patch_grid()), expected_shape())


def patch_rows(
    x: TensorValue, weight: TensorValue, bias: TensorValue | None, grid: Sequence[Dim]
) -> TensorValue:
    """The embedding of every patch, (N * patches, O)."""
    kernel = [int(k) for k in weight.shape[2:]]
    rank = len(kernel)
    batch, channels = x.shape[0], x.shape[1]
    for axis, (count, size) in enumerate(zip(grid, kernel, strict=True)):
        covered = count * size
        if covered != x.shape[axis + 2]:  # the rest of a floored division is dropped
            x = slice_axis(x, axis + 2, 0, covered, 1, covered)
    split: list[IntLike] = [batch, channels]
    for count, size in zip(grid, kernel, strict=True):
        split += [count, size]
    x = reshape(x, split)  # (N, C, h, kh, w, kw)
    counts = [2 + 2 * i for i in range(rank)]
    x = permuted_copy(x, [0, *counts, 1, *[c + 1 for c in counts]])  # (N, h, w, C, kh, kw)
    features = int(channels) * math.prod(kernel)
    rows: IntLike = batch
    for count in grid:
        rows = rows * count
    x = reshape(x, [rows, features])
    weight = reshape(weight, [weight.shape[0], features])
    if bias is None:
        return product(x, weight, turned=True, dtype=x.dtype)
    return linear_layer(x, weight, bias)


def _unpatch(
    x: TensorValue, weight: TensorValue, bias: TensorValue | None, kernel: Sequence[int]
) -> TensorValue:
    """A transposed convolution whose kernel equals its stride: one matmul, then the pixels."""
    rank = len(kernel)
    batch, channels, *grid = x.shape
    out_channels = int(weight.shape[1])
    x = permute(x, [0, *range(2, rank + 2), 1])  # (N, h, w, C)
    out = matmul(reshape(x, [-1, channels]), reshape(weight, [channels, -1]))
    out = reshape(out, [batch, *grid, out_channels, *kernel])  # (N, h, w, O, kh, kw)
    order = [0, rank + 1]
    for i in range(rank):
        order += [1 + i, rank + 2 + i]
    out = permute(out, order)  # (N, O, h, kh, w, kw)
    out = reshape(out, [batch, out_channels, *[n * k for n, k in zip(grid, kernel, strict=True)]])
    return _add_bias(out, bias)


def _add_bias(out: TensorValue, bias: TensorValue | None) -> TensorValue:
    if bias is None:
        return out
    return out + reshape(bias, [1, bias.shape[0]] + [1] * (out.rank - 2))


def packed_convolution(
    x: TensorValue,
    panels: TensorValue,
    bias: TensorValue | None,
    filters: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> TensorValue:
    """aten.convolution on CPU of one group of filters that lie in panels, float32 or bfloat16."""
    missing = 3 - len(kernel)
    ones = [1] * missing
    wide = accumulation_dtype(x.dtype)
    numbers = [1, *ones, *kernel, *ones, *stride, *ones, *dilation, *[0] * missing, *padding]
    images = _channels_last(x, missing)
    out = _cpu_convolution(images, panels, filters, wide, [*numbers, 1, 1, 1], packed=True)
    return _channels_first(out, bias, missing, x.dtype)


def _direct(
    x: TensorValue,
    weight: TensorValue,
    bias: TensorValue | None,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    spacing: Sequence[int] | None = None,
) -> TensorValue:
    """Channels-last, by our kernel on CPU and MAX's on GPU; missing dimensions have a size of 1.

    ``padding`` is what goes before and after each axis. On CPU inputs may lie ``spacing`` apart,
    with zeros between.
    """
    rank = x.rank - 2
    dtype = x.dtype
    wide = accumulation_dtype(dtype)
    if not takes_bfloat16(x):
        x, weight = ops.cast(x, wide), ops.cast(weight, wide)
    spatial = 3 if x.device.is_cpu() else max(rank, 2)
    missing = spatial - rank
    ones = [1] * missing
    stride, dilation = [*ones, *stride], [*ones, *dilation]
    padding = [(0, 0)] * missing + list(padding)
    spacing = [*ones, *(spacing or [1] * rank)]
    x = _channels_last(x, missing)
    weight = reshape(weight, [*list(weight.shape)[:2], *ones, *list(weight.shape)[2:]])
    if x.device.is_cpu():
        taps = [int(n) for n in weight.shape[2:]]
        before = [start for start, _ in padding]
        numbers = [groups, *taps, *stride, *dilation, *before, *spacing]
        weight = permute(weight, [0, 2, 3, 4, 1])
        out = _cpu_convolution(x, weight, weight.shape[0], wide, numbers, packed=False)
    else:
        weight = permute(weight, [*range(2, spatial + 2), 1, 0])  # (k..., C / groups, O)
        pads = tuple(p for pair in padding for p in pair)
        run = ops.conv3d if spatial == 3 else ops.conv2d
        out = run(x, weight, tuple(stride), tuple(dilation), pads, groups)
    return _channels_first(out, bias, missing, dtype)


def _channels_last(x: TensorValue, missing: int) -> TensorValue:
    """(N, C, *spatial) to (N, *spatial, C), with axes of size 1 for those that are missing."""
    x = reshape(x, [*list(x.shape)[:2], *[1] * missing, *list(x.shape)[2:]])
    return permuted_copy(x, [0, *range(2, x.rank), 1])


def _channels_first(
    out: TensorValue, bias: TensorValue | None, missing: int, dtype: DType
) -> TensorValue:
    """Back, with the bias, rounded once."""
    out = permute(out, [0, out.rank - 1, *range(1, out.rank - 1)])
    out = drop_axes(out, range(2, 2 + missing))
    if bias is not None:
        out = _add_bias(out, ops.cast(bias, out.dtype))
    return cast(out, dtype)


def _cpu_convolution(
    x: TensorValue,
    filters: TensorValue,
    count: IntLike,
    dtype: DType,
    numbers: Sequence[int],
    packed: bool,
) -> TensorValue:
    """(N, D, H, W, C) images and ``count`` filters, (O, kD, kH, kW, C / groups) or in panels; the
    numbers are those that the kernel names."""
    sizes = expected_shape()[2:]
    sizes = [Dim(1)] * (3 - len(sizes)) + sizes
    kind = TensorType(dtype, [x.shape[0], *sizes, count], x.device)
    values = [x, filters, *map(dim_value, numbers)]
    name = "torch_max_backend.convolution"
    return ops.custom(name, x.device, values, [kind], {"packed": packed})[0].tensor


def _transposed(
    x: TensorValue,
    weight: TensorValue,
    bias: TensorValue | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> TensorValue:
    """The gradient of a convolution."""
    rank = x.rank - 2
    kernel = [int(k) for k in list(weight.shape)[2:]]
    in_channels, per_group = int(weight.shape[0]), int(weight.shape[1])
    # (C, O / groups, k...) -> (O, C / groups, k...)
    weight = reshape(weight, [groups, in_channels // groups, per_group, *kernel])
    weight = permute(weight, [0, 2, 1, *range(3, rank + 3)])
    weight = reshape(weight, [groups * per_group, in_channels // groups, *kernel])
    if x.device.is_cpu():
        back = [-d for d in dilation]
        shift = [(-p, 0) for p in padding]
        return _direct(x, weight, bias, [1] * rank, shift, back, groups, spacing=stride)
    for i in range(rank):
        x = _insert_zeros(x, 2 + i, stride[i])
    pads = []
    for i in range(rank):
        reach = dilation[i] * (kernel[i] - 1)
        before, after = reach - padding[i], reach - padding[i] + output_padding[i]
        x, before, after = _crop(x, 2 + i, before, after)
        pads.append((before, after))
    return _direct(x, _flip(weight, range(2, rank + 2)), bias, [1] * rank, pads, dilation, groups)


def _flip(x: TensorValue, axes: Sequence[int]) -> TensorValue:
    """Reverses short static axes, a slice an element."""
    for axis in axes:
        n = static(x.shape[axis])
        assert n is not None
        pieces = [slice_axis(x, axis, i, i + 1, 1, 1) for i in reversed(range(n))]
        x = pieces[0] if n == 1 else join(pieces, axis)
    return x


def _insert_zeros(x: TensorValue, axis: int, step: int) -> TensorValue:
    """step - 1 zeros between neighbours along an axis."""
    if step == 1:
        return x
    shape = list(x.shape)
    size = shape[axis]
    x = reshape(x, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
    paddings = [0] * (2 * x.rank)
    paddings[2 * (axis + 1) + 1] = step - 1
    x = ops.pad(x, paddings)
    x = reshape(x, [*shape[:axis], size * step, *shape[axis + 1 :]])
    length: Dim = size * step - (step - 1)
    return slice_axis(x, axis, 0, length, 1, length)


def _crop(x: TensorValue, axis: int, before: int, after: int) -> tuple[TensorValue, int, int]:
    """Negative padding cuts; returns what is left to pad."""
    cut_before, cut_after = max(0, -before), max(0, -after)
    if cut_before or cut_after:
        length = x.shape[axis] - (cut_before + cut_after)
        x = slice_axis(x, axis, cut_before, length + cut_before, 1, length)
    return x, max(0, before), max(0, after)
