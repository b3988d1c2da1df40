"""Scaled dot-product attention (Vaswani et al., 2017): our kernel on CPU, MAX's on GPU."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from max.driver import accelerator_api
from max.dtype import DType
from max.graph import DeviceRef, Dim, TensorValue, ops

from torch_max_backend import context
from torch_max_backend.dims import IntLike, static
from torch_max_backend.dtypes import to_torch
from torch_max_backend.ops import cpu_attention
from torch_max_backend.ops.constants import tensor_constant
from torch_max_backend.ops.cpu_attention import additive
from torch_max_backend.ops.gpu_products import in_full_precision
from torch_max_backend.ops.matmul import linear, matmul
from torch_max_backend.ops.normalization import softmax
from torch_max_backend.ops.rounding import cast
from torch_max_backend.ops.shape import (
    agree,
    broadcast,
    diagonal_mask,
    filled,
    join,
    permute,
    reshape,
    slice_axis,
)
from torch_max_backend.promotion import accumulation_dtype

_SWAP_HEADS_AND_LENGTH = [0, 2, 1, 3]


def attention(
    query: TensorValue,
    key: TensorValue,
    value: TensorValue,
    mask: TensorValue | None,
    causal: bool,
    scale: float,
    grouped: bool,
) -> TensorValue:
    """Attention over (..., H, L, E), keys (..., H_kv, S, E), values (..., H_kv, S, E_v).

    A bool mask keeps where True, a float mask is added; a row that keeps nothing gives zeros.
    """
    lead = list(query.shape)[:-2]
    q, k, v = (_rank4(x) for x in (query, key, value))
    if mask is not None:
        mask = _rank4_mask(_known_additive(mask, accumulation_dtype(q.dtype)), lead)
    if cpu_attention.takes(q, k, v):
        out = cpu_attention.cpu_attention(q, k, v, mask, causal, scale)
    else:
        if grouped:
            k, v = (_repeat_heads(x, q.shape[1]) for x in (k, v))
        if mask is not None:
            mask = agree(mask, [q.shape[0], q.shape[1], q.shape[2], k.shape[2]])
        out = _dispatch(q, k, v, mask, causal, scale)
    return reshape(out, [*lead, query.shape[-2], value.shape[-1]])


def softmax_attention(
    q: TensorValue, k: TensorValue, v: TensorValue, mask: TensorValue | None, scale: float
) -> TensorValue:
    """Attention over (B, H, L, E) on CPU, with a mask that is added; a row without keys gives NaN,
    as its softmax does."""
    if mask is not None:
        mask = _rank4_mask(mask, list(q.shape)[:2])
    if cpu_attention.takes(q, k, v):
        return cpu_attention.cpu_attention(q, k, v, mask, False, scale, empty_rows=math.nan)
    return composed_attention(q, k, v, mask, False, scale, empty_rows=math.nan)


def _rank4(x: TensorValue) -> TensorValue:
    """(L, E) tails under any lead -> (B, H, L, E)."""
    if x.rank == 4:
        return x
    if x.rank == 3:
        return reshape(x, [1, *x.shape])
    heads = list(x.shape)[-3]
    return reshape(x, [-1, heads, *list(x.shape)[-2:]])


def _rank4_mask(mask: TensorValue, lead: Sequence[Dim]) -> TensorValue:
    """A mask for scores under some lead -> (B or 1, H or 1, L or 1, S or 1)."""
    if len(lead) > 2:
        mask = broadcast(mask, [*lead, *list(mask.shape)[-2:]])
    return reshape(mask, [*([1] * (4 - mask.rank)), *mask.shape]) if mask.rank < 4 else _rank4(mask)


def _repeat_heads(x: TensorValue, heads: Dim) -> TensorValue:
    """Each key-value head serves a group of query heads (Ainslie et al., 2023)."""
    batch, kv_heads, length, width = x.shape
    groups = int(heads) // int(kv_heads)
    if groups == 1:
        return x
    x = broadcast(
        reshape(x, [batch, kv_heads, 1, length, width]), [batch, kv_heads, groups, length, width]
    )
    return reshape(x, [batch, heads, length, width])


def _dispatch(
    q: TensorValue,
    k: TensorValue,
    v: TensorValue,
    mask: TensorValue | None,
    causal: bool,
    scale: float,
) -> TensorValue:
    empty = any(static(d) == 0 for x in (q, k, v) for d in x.shape)
    unfused = context.options().attention == "composed"
    if not empty and q.shape[-1] != v.shape[-1]:
        # MAX fuses even composed attention, and wrongly where the widths differ
        keys, values = _missing_widths(q.shape[-1], v.shape[-1])
        q, k, wide = _widened(q, keys), _widened(k, keys), _widened(v, values)
        out = _dispatch(q, k, agree(wide, [q.shape[-1]]), mask, causal, scale)
        return slice_axis(out, 3, 0, v.shape[-1], 1, v.shape[-1])
    if unfused or empty or q.dtype == DType.float64 or in_full_precision(q):
        return composed_attention(q, k, v, mask, causal, scale)
    square = q.shape[2] == k.shape[2]
    # MAX 26.6's kernel for HIP asks for instructions that CDNA 3 (gfx942) lacks
    if mask is None and (square or not causal) and accelerator_api() != "hip":
        return _flash_gpu(q, k, v, causal, scale)
    return composed_attention(q, k, v, mask, causal, scale)


def _missing_widths(keys: Dim, values: Dim) -> tuple[IntLike, IntLike]:
    """What is to be added to each so that they are equal."""
    e, e_v = static(keys), static(values)
    if e is None or e_v is None:
        return values, keys
    return max(e, e_v) - e, max(e, e_v) - e_v


def _widened(x: TensorValue, missing: IntLike) -> TensorValue:
    """Zeros after the last axis; they add nothing to a score and are cut from the result."""
    if static(missing) == 0:
        return x
    zeros = filled(0, [*list(x.shape)[:-1], missing], x.dtype, x.device)
    return join([x, zeros], -1)


def _flash_gpu(
    q: TensorValue, k: TensorValue, v: TensorValue, causal: bool, scale: float
) -> TensorValue:
    """The GPU kernel, for float32 and half precision."""
    variants, kernel = _gpu_kernel()
    variant = variants.CAUSAL_MASK if causal else variants.NULL_MASK
    return _swap(kernel(*map(_swap, (q, k, v)), mask_variant=variant, scale=scale))


def _gpu_kernel() -> tuple[Any, Any]:
    """MAX's mask variants and GPU kernel, imported late for what importing max.nn does.

    It starts MAX's threads, which a process forked later would lack, and sets PYTHONEXECUTABLE,
    with which a Python process started later would miss the packages of a virtual environment.
    """
    from max.nn.attention import MHAMaskVariant
    from max.nn.kernels import flash_attention_gpu

    if "PYTHONEXECUTABLE" not in os.environ:  # a copy made when Python started
        os.unsetenv("PYTHONEXECUTABLE")
    return MHAMaskVariant, flash_attention_gpu


def _swap(x: TensorValue) -> TensorValue:
    """(B, H, L, E) <-> (B, L, H, E), the layout of MAX's kernels."""
    return permute(x, _SWAP_HEADS_AND_LENGTH)


def _bias(
    mask: TensorValue | None, causal: bool, scores: list[Dim], dtype: DType, device: DeviceRef
) -> tuple[TensorValue, TensorValue | None]:
    """(additive mask, bool of the keys a row keeps or None when every row keeps some)."""
    if mask is None:
        return _causal_bias(scores, dtype, device), None
    if causal and mask.dtype == DType.bool:
        lower = diagonal_mask(scores[2], scores[3], 0, device)
        mask = ops.logical_and(mask, reshape(lower, [1, 1, *scores[2:]]))
    elif causal:
        mask = ops.cast(mask, dtype) + _causal_bias(scores, dtype, device)
    if mask.dtype == DType.bool:
        return additive(mask, dtype), mask
    mask = ops.cast(mask, dtype)
    return mask, mask > ops.constant(-math.inf, dtype, device=device)


def _causal_bias(scores: list[Dim], dtype: DType, device: DeviceRef) -> TensorValue:
    """(1, 1, L, S): what is added to scores so that no query sees a later key."""
    rows, columns = static(scores[2]), static(scores[3])
    if rows is None or columns is None:
        keep = diagonal_mask(scores[2], scores[3], 0, device)
        return reshape(additive(keep, dtype), [1, 1, *scores[2:]])
    with context.real_tensors():
        hidden = torch.full((1, 1, rows, columns), -math.inf, dtype=to_torch(dtype)).triu(1)
    return tensor_constant(hidden, device)


def _known_additive(mask: TensorValue, dtype: DType) -> TensorValue:
    """A bool mask that is a constant as the one that is added, other masks as they are."""
    keep = context.constant_of(mask) if mask.dtype == DType.bool else None
    if keep is None:
        return mask
    with context.real_tensors():
        hidden = torch.where(keep, 0.0, -math.inf).to(to_torch(dtype))
    return tensor_constant(hidden, mask.device)


def _zero_empty_rows(out: TensorValue, keeps: TensorValue | None) -> TensorValue:
    """Zeros where no key is kept (out and keeps are (B, H, L, .) or broadcast to it)."""
    if keeps is None:
        return out
    some = ops.max(ops.cast(keeps, DType.float32), axis=-1) > 0.0
    return ops.where(some, out, ops.constant(0.0, out.dtype, device=out.device))


def composed_attention(
    q: TensorValue,
    k: TensorValue,
    v: TensorValue,
    mask: TensorValue | None,
    causal: bool,
    scale: float,
    empty_rows: float = 0.0,
) -> TensorValue:
    """Matmul, softmax, matmul: any dtype, mask and head width, in the accumulation dtype.

    ``empty_rows``, 0 or NaN, is what a row without keys gives.
    """
    wide = accumulation_dtype(q.dtype)
    scores = ops.cast(linear(q, k), wide) * scale
    keeps = None
    if mask is not None or causal:
        bias, keeps = _bias(mask, causal, list(scores.shape), wide, q.device)
        scores = scores + bias
    weights = softmax(scores, -1)
    out = matmul(cast(weights, q.dtype), v)
    return out if math.isnan(empty_rows) else _zero_empty_rows(out, keeps)
