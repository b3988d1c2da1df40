"""THE TABLE: one row or one short function per ATen operator, A-Z by overload name.

To add an operator: a row ``pointwise(overload, function)`` or ``reduction(overload, function)``, or
a function whose signature is the schema; a body over a dozen lines goes to ``ops/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from max.dtype import DType
from max.graph import Dim, TensorValue, ops

from torch_max_backend import composites, passes  # noqa: F401  register torch_max_backend::*
from torch_max_backend.accelerators import to_device_ref
from torch_max_backend.context import Rotation, expected, expected_shape
from torch_max_backend.dims import IntLike
from torch_max_backend.dtypes import to_max
from torch_max_backend.ops import (
    activations,
    arithmetic,
    comparison,
    indexing,
    normalization,
    quantization,
    random,
    rotary,
    shape,
    sorting,
    transcendental,
)
from torch_max_backend.ops import attention as attention_ops
from torch_max_backend.ops import block as block_ops
from torch_max_backend.ops import convolution as convolution_ops
from torch_max_backend.ops import matmul as matmul_ops
from torch_max_backend.ops import reduction as reduce_ops
from torch_max_backend.promotion import (
    Number,
    Promotion,
    accumulation_dtype,
    as_tensor,
    common_device,
    promoted_dtype,
)
from torch_max_backend.registry import lowering, pointwise, reduction

aten = torch.ops.aten
Scalar: TypeAlias = Number | Dim | TensorValue
FLOAT = Promotion.INT_TO_FLOAT
BOOL = Promotion.ALWAYS_BOOL


@lowering(aten._int_mm.default)
def aten__int_mm(self: TensorValue, mat2: TensorValue) -> TensorValue:
    """_int_mm(Tensor self, Tensor mat2) -> Tensor"""
    return matmul_ops.int_mm(self, mat2)


@lowering(aten._log_softmax.default)
def aten__log_softmax(self: TensorValue, dim: int, half_to_float: bool) -> TensorValue:
    """_log_softmax(Tensor self, int dim, bool half_to_float) -> Tensor"""
    out = normalization.softmax(self, dim, log=True)
    return arithmetic.cast_value(out, to_max(expected().dtype))


@lowering(aten._native_batch_norm_legit.no_stats)
def aten__native_batch_norm_legit_no_stats(
    input: TensorValue,
    weight: TensorValue | None,
    bias: TensorValue | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """_native_batch_norm_legit.no_stats(Tensor input, Tensor? weight, Tensor? bias, bool training, float momentum, float eps) -> (Tensor, Tensor, Tensor)"""
    out, *statistics = normalization.batch_norm(input, weight, bias, eps)
    kinds = [to_max(expected(i).dtype) for i in (1, 2)]
    casts = [arithmetic.cast_value(s, kind) for s, kind in zip(statistics, kinds, strict=True)]
    return out, casts[0], casts[1]


@lowering(aten._native_batch_norm_legit_no_training.default)
def aten__native_batch_norm_legit_no_training(
    input: TensorValue,
    weight: TensorValue | None,
    bias: TensorValue | None,
    running_mean: TensorValue,
    running_var: TensorValue,
    momentum: float,
    eps: float,
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """_native_batch_norm_legit_no_training(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, float momentum, float eps) -> (Tensor, Tensor, Tensor)"""
    out = normalization.batch_norm_inference(input, weight, bias, running_mean, running_var, eps)
    return out, _full(0, 1), _full(0, 2)


@lowering(aten._softmax.default)
def aten__softmax(self: TensorValue, dim: int, half_to_float: bool) -> TensorValue:
    """_softmax(Tensor self, int dim, bool half_to_float) -> Tensor"""
    out = normalization.softmax(self, dim)
    return arithmetic.cast_value(out, to_max(expected().dtype))


@lowering(aten._to_copy.default)
def aten__to_copy(
    self: TensorValue,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> TensorValue:
    """_to_copy(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, bool non_blocking=False, MemoryFormat? memory_format=None) -> Tensor"""
    out = self if dtype is None else arithmetic.cast_value(self, to_max(dtype))
    return out if device is None else out.to(to_device_ref(device))


abs_ = pointwise(aten.abs.default, arithmetic.absolute)
acos = pointwise(aten.acos.default, transcendental.acos, promotion=FLOAT)
add = pointwise((aten.add.Scalar, aten.add.Tensor), arithmetic.add)


@lowering(aten.addmm.default)
def aten_addmm(
    self: TensorValue, mat1: TensorValue, mat2: TensorValue, *, beta: Scalar = 1, alpha: Scalar = 1
) -> TensorValue:
    """addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    return matmul_ops.addmm(self, mat1, mat2, beta, alpha)


@lowering(aten.addmv.default)
def aten_addmv(
    self: TensorValue, mat: TensorValue, vec: TensorValue, *, beta: Scalar = 1, alpha: Scalar = 1
) -> TensorValue:
    """addmv(Tensor self, Tensor mat, Tensor vec, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    return matmul_ops.addmv(self, mat, vec, beta, alpha)


@lowering(aten.alias.default, aten.detach.default)
def aten_alias(self: TensorValue) -> TensorValue:
    """alias(Tensor(a) self) -> Tensor(a)"""
    return self


all_ = reduction(
    (aten.all.default, aten.all.dim, aten.all.dims), reduce_ops.all_axis, promotion=BOOL
)
amax = reduction(aten.amax.default, reduce_ops.max_axis)
amin = reduction(aten.amin.default, reduce_ops.min_axis)
any_ = reduction(
    (aten.any.default, aten.any.dim, aten.any.dims), reduce_ops.any_axis, promotion=BOOL
)


@lowering(aten.arange.start_step)
def aten_arange(
    start: Scalar,
    end: Scalar,
    step: Scalar = 1,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> TensorValue:
    """arange.start_step(Scalar start, Scalar end, Scalar step=1, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""
    fake = expected()
    out, target = to_max(fake.dtype), to_device_ref(fake.device)
    wide = accumulation_dtype(out) if out.is_float() else DType.int64
    steps = arithmetic.cast_value(shape.iota(expected_shape()[0], target), wide)
    values = steps * as_tensor(step, wide, target) + as_tensor(start, wide, target)
    return arithmetic.cast_value(values, out)


@lowering(aten.argmax.default)
def aten_argmax(self: TensorValue, dim: int | None = None, keepdim: bool = False) -> TensorValue:
    """argmax(Tensor self, int? dim=None, bool keepdim=False) -> Tensor"""
    return reduce_ops.arg_extreme(self, dim, keepdim, largest=True)


@lowering(aten.argmin.default)
def aten_argmin(self: TensorValue, dim: int | None = None, keepdim: bool = False) -> TensorValue:
    """argmin(Tensor self, int? dim=None, bool keepdim=False) -> Tensor"""
    return reduce_ops.arg_extreme(self, dim, keepdim, largest=False)


def _contiguous_input(node: torch.fx.Node) -> str | None:
    if node.args[0].meta["val"].is_contiguous():  # type: ignore[union-attr]
        return None
    return "as_strided of a tensor that is not contiguous; call .contiguous() first"


@lowering(aten.as_strided.default, supports=_contiguous_input)
def aten_as_strided(
    self: TensorValue,
    size: Sequence[IntLike],
    stride: Sequence[IntLike],
    storage_offset: IntLike | None = None,
) -> TensorValue:
    """as_strided(Tensor(a) self, SymInt[] size, SymInt[] stride, SymInt? storage_offset=None) -> Tensor(a)"""
    return indexing.as_strided(self, size, stride, storage_offset or 0)


atanh = pointwise(aten.atanh.default, ops.atanh, promotion=FLOAT)


@lowering(aten.bernoulli.default)
def aten_bernoulli(self: TensorValue, *, generator: None = None) -> TensorValue:
    """bernoulli(Tensor self, *, Generator? generator=None) -> Tensor"""
    return random.bernoulli(self)


@lowering(aten.bernoulli.p)
def aten_bernoulli_p(self: TensorValue, p: float, *, generator: None = None) -> TensorValue:
    """bernoulli.p(Tensor self, float p, *, Generator? generator=None) -> Tensor"""
    return random.bernoulli(p)


bitwise_and = pointwise(
    (aten.bitwise_and.Scalar, aten.bitwise_and.Tensor),
    comparison.logical_and,
    supports=lambda node: _bool_only(node),
)
bitwise_not = pointwise(
    aten.bitwise_not.default, ops.logical_not, supports=lambda node: _bool_only(node)
)
bitwise_or = pointwise(
    (aten.bitwise_or.Scalar, aten.bitwise_or.Tensor),
    comparison.logical_or,
    supports=lambda node: _bool_only(node),
)
bitwise_xor = pointwise(
    (aten.bitwise_xor.Scalar, aten.bitwise_xor.Tensor),
    comparison.logical_xor,
    supports=lambda node: _bool_only(node),
)


def _bool_only(node: torch.fx.Node) -> str | None:
    dtype = node.meta["val"].dtype
    return (
        None if dtype == torch.bool else f"MAX has no bitwise operations on {dtype}, only on bool"
    )


@lowering(aten.bmm.default)
def aten_bmm(self: TensorValue, mat2: TensorValue) -> TensorValue:
    """bmm(Tensor self, Tensor mat2) -> Tensor"""
    return matmul_ops.mm(self, mat2)


@lowering(aten.cat.default)
def aten_cat(tensors: Sequence[TensorValue], dim: int = 0) -> TensorValue:
    """cat(Tensor[] tensors, int dim=0) -> Tensor"""
    dtype = promoted_dtype(tensors)
    return shape.concat([arithmetic.cast_value(t, dtype) for t in tensors], dim)


ceil = pointwise(aten.ceil.default, arithmetic.ceil)
clamp = pointwise(
    (aten.clamp.default, aten.clamp.Tensor), comparison.clamp, operands=("self", "min", "max")
)
clamp_max = pointwise(
    (aten.clamp_max.default, aten.clamp_max.Tensor), comparison.minimum, operands=("self", "max")
)
clamp_min = pointwise(
    (aten.clamp_min.default, aten.clamp_min.Tensor), comparison.maximum, operands=("self", "min")
)


@lowering(aten.clone.default)
def aten_clone(
    self: TensorValue, *, memory_format: torch.memory_format | None = None
) -> TensorValue:
    """clone(Tensor self, *, MemoryFormat? memory_format=None) -> Tensor"""
    return self


@lowering(aten.constant_pad_nd.default)
def aten_constant_pad_nd(
    self: TensorValue, pad: Sequence[IntLike], value: Scalar = 0
) -> TensorValue:
    """constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0) -> Tensor"""
    return shape.pad_constant(self, pad, value)


@lowering(aten.convolution.default)
def aten_convolution(
    input: TensorValue,
    weight: TensorValue,
    bias: TensorValue | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> TensorValue:
    """convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor"""
    return convolution_ops.convolution(
        input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )


@lowering(aten.copy.default)
def aten_copy(self: TensorValue, src: TensorValue, non_blocking: bool = False) -> TensorValue:
    """copy(Tensor self, Tensor src, bool non_blocking=False) -> Tensor"""
    source = arithmetic.cast_value(src, self.dtype).to(self.device)
    return shape.broadcast(source, list(self.shape))


cos = pointwise(aten.cos.default, ops.cos, promotion=FLOAT)


@lowering(aten.cumsum.default)
def aten_cumsum(self: TensorValue, dim: int, *, dtype: torch.dtype | None = None) -> TensorValue:
    """cumsum(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    out = to_max(expected().dtype)
    x = arithmetic.cast_value(self, accumulation_dtype(out))
    return arithmetic.cast_value(reduce_ops.running_sum(x, dim % x.rank) if x.rank else x, out)


@lowering(aten.diagonal.default)
def aten_diagonal(self: TensorValue, offset: int = 0, dim1: int = 0, dim2: int = 1) -> TensorValue:
    """diagonal(Tensor(a) self, int offset=0, int dim1=0, int dim2=1) -> Tensor(a)"""
    return shape.diagonal(self, offset, dim1, dim2)


div = pointwise((aten.div.Scalar, aten.div.Tensor), arithmetic.divide, promotion=FLOAT)
div_mode = pointwise((aten.div.Scalar_mode, aten.div.Tensor_mode), arithmetic.divide)
elu = pointwise(aten.elu.default, activations.elu)


@lowering(aten.embedding.default)
def aten_embedding(
    weight: TensorValue,
    indices: TensorValue,
    padding_idx: IntLike = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> TensorValue:
    """embedding(Tensor weight, Tensor indices, SymInt padding_idx=-1, bool scale_grad_by_freq=False, bool sparse=False) -> Tensor"""
    return indexing.embedding(weight, indices)


@lowering(aten.empty.memory_format)
def aten_empty(
    size: Sequence[IntLike],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> TensorValue:
    """empty.memory_format(SymInt[] size, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor"""
    return _full(0)


@lowering(aten.empty_like.default)
def aten_empty_like(
    self: TensorValue,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> TensorValue:
    """empty_like(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor"""
    return _full(0)


eq = pointwise((aten.eq.Scalar, aten.eq.Tensor), comparison.equal, promotion=BOOL)
erf = pointwise(aten.erf.default, transcendental.erf, promotion=FLOAT)
exp = pointwise(aten.exp.default, transcendental.exp, promotion=FLOAT)
exp2 = pointwise(aten.exp2.default, transcendental.exp2, promotion=FLOAT)


@lowering(aten.expand.default)
def aten_expand(
    self: TensorValue, size: Sequence[IntLike], *, implicit: bool = False
) -> TensorValue:
    """expand(Tensor(a) self, SymInt[] size, *, bool implicit=False) -> Tensor(a)"""
    return shape.expand(self)


expm1 = pointwise(aten.expm1.default, transcendental.expm1, promotion=FLOAT)


@lowering(aten.flip.default)
def aten_flip(self: TensorValue, dims: Sequence[int]) -> TensorValue:
    """flip(Tensor self, int[] dims) -> Tensor"""
    return shape.flip(self, dims)


floor = pointwise(aten.floor.default, arithmetic.floor)
floor_divide = pointwise(
    (aten.floor_divide.default, aten.floor_divide.Scalar), arithmetic.floor_divide
)
fmod = pointwise((aten.fmod.Scalar, aten.fmod.Tensor), arithmetic.fmod)


def _full(value: Scalar, result: int | None = None) -> TensorValue:
    """A constant of the shape, dtype and device that torch computed for this node."""
    fake = expected(result)
    device = to_device_ref(fake.device)
    return shape.filled(value, expected_shape(result), to_max(fake.dtype), device)


@lowering(aten.full.default)
def aten_full(
    size: Sequence[IntLike],
    fill_value: Scalar,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> TensorValue:
    """full(SymInt[] size, Scalar fill_value, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""
    return _full(fill_value)


@lowering(aten.full_like.default)
def aten_full_like(
    self: TensorValue,
    fill_value: Scalar,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> TensorValue:
    """full_like(Tensor self, Scalar fill_value, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor"""
    return _full(fill_value)


@lowering(aten.gather.default)
def aten_gather(
    self: TensorValue, dim: int, index: TensorValue, *, sparse_grad: bool = False
) -> TensorValue:
    """gather(Tensor self, int dim, Tensor index, *, bool sparse_grad=False) -> Tensor"""
    return indexing.gather(self, dim, index)


ge = pointwise((aten.ge.Scalar, aten.ge.Tensor), comparison.greater_equal, promotion=BOOL)
gelu = pointwise(aten.gelu.default, activations.gelu)
gt = pointwise((aten.gt.Scalar, aten.gt.Tensor), ops.greater, promotion=BOOL)
hardsigmoid = pointwise(aten.hardsigmoid.default, activations.hardsigmoid)
hardswish = pointwise(aten.hardswish.default, activations.hardswish)
hardtanh = pointwise(aten.hardtanh.default, activations.hardtanh)


@lowering(aten.index.Tensor)
def aten_index(self: TensorValue, indices: Sequence[TensorValue | None]) -> TensorValue:
    """index.Tensor(Tensor self, Tensor?[] indices) -> Tensor"""
    return indexing.index_tensor(self, indices)


@lowering(aten.index_put.default)
def aten_index_put(
    self: TensorValue,
    indices: Sequence[TensorValue | None],
    values: TensorValue,
    accumulate: bool = False,
) -> TensorValue:
    """index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor"""
    return indexing.index_put(self, indices, values, accumulate)


@lowering(aten.index_select.default)
def aten_index_select(self: TensorValue, dim: int, index: TensorValue) -> TensorValue:
    """index_select(Tensor self, int dim, Tensor index) -> Tensor"""
    if not self.rank:
        return self
    return ops.gather(self, shape.reshape(index, [-1]), axis=dim % self.rank)


isinf = pointwise(aten.isinf.default, comparison.is_inf, promotion=BOOL)
isnan = pointwise(aten.isnan.default, comparison.is_nan, promotion=BOOL)
le = pointwise((aten.le.Scalar, aten.le.Tensor), comparison.less_equal, promotion=BOOL)
leaky_relu = pointwise(aten.leaky_relu.default, activations.leaky_relu)
lerp = pointwise(
    (aten.lerp.Scalar, aten.lerp.Tensor), arithmetic.lerp, operands=("self", "end", "weight")
)


@lowering(aten.lift_fresh_copy.default)
def aten_lift_fresh_copy(self: TensorValue) -> TensorValue:
    """lift_fresh_copy(Tensor self) -> Tensor"""
    return self


@lowering(aten.linalg_vector_norm.default)
def aten_linalg_vector_norm(
    self: TensorValue,
    ord: Scalar = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> TensorValue:
    """linalg_vector_norm(Tensor self, Scalar ord=2, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    out = to_max(expected().dtype)
    wide = arithmetic.cast_value(self, accumulation_dtype(out))
    dims = shape.normalize_dims(dim, self.rank)
    norm = arithmetic.cast_value(reduce_ops.vector_norm(wide, float(ord), dims), out)
    return norm if keepdim else shape.drop_axes(norm, dims)


log = pointwise(aten.log.default, transcendental.log, promotion=FLOAT)
log10 = pointwise(aten.log10.default, transcendental.log10, promotion=FLOAT)
log1p = pointwise(aten.log1p.default, transcendental.log1p, promotion=FLOAT)
log2 = pointwise(aten.log2.default, transcendental.log2, promotion=FLOAT)
logical_and = pointwise(aten.logical_and.default, comparison.logical_and, promotion=BOOL)
logical_not = pointwise(aten.logical_not.default, comparison.logical_not, promotion=BOOL)
logical_or = pointwise(aten.logical_or.default, comparison.logical_or, promotion=BOOL)
logical_xor = pointwise(aten.logical_xor.default, comparison.logical_xor, promotion=BOOL)
lt = pointwise((aten.lt.Scalar, aten.lt.Tensor), comparison.less, promotion=BOOL)


@lowering(aten.masked_fill.Scalar)
def aten_masked_fill(self: TensorValue, mask: TensorValue, value: Scalar) -> TensorValue:
    """masked_fill.Scalar(Tensor self, Tensor mask, Scalar value) -> Tensor"""
    return ops.where(mask, as_tensor(value, self.dtype, self.device), self)


@lowering(aten.masked_fill.Tensor)
def aten_masked_fill_tensor(
    self: TensorValue, mask: TensorValue, value: TensorValue
) -> TensorValue:
    """masked_fill.Tensor(Tensor self, Tensor mask, Tensor value) -> Tensor"""
    return ops.where(mask, as_tensor(value, self.dtype, self.device), self)


max_ = reduction(aten.max.default, reduce_ops.max_axis)


@lowering(aten.max.dim)
def aten_max_dim(
    self: TensorValue, dim: int, keepdim: bool = False
) -> tuple[TensorValue, TensorValue]:
    """max.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)"""
    index = reduce_ops.arg_extreme(self, dim, keepdim, largest=True)
    return _reduced(self, dim, keepdim, reduce_ops.max_axis), index


maximum = pointwise(aten.maximum.default, comparison.maximum)
mean = reduction((aten.mean.default, aten.mean.dim), reduce_ops.mean_axis)


min_ = reduction(aten.min.default, reduce_ops.min_axis)


@lowering(aten.min.dim)
def aten_min_dim(
    self: TensorValue, dim: int, keepdim: bool = False
) -> tuple[TensorValue, TensorValue]:
    """min.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)"""
    index = reduce_ops.arg_extreme(self, dim, keepdim, largest=False)
    return _reduced(self, dim, keepdim, reduce_ops.min_axis), index


def _reduced(x: TensorValue, dim: int, keepdim: bool, body: Any) -> TensorValue:
    if not x.rank:
        return x
    axis = dim % x.rank
    out = body(x, axis)
    return out if keepdim else shape.drop_axes(out, [axis])


minimum = pointwise(aten.minimum.default, comparison.minimum)
mish = pointwise(aten.mish.default, activations.mish)


@lowering(aten.mm.default)
def aten_mm(self: TensorValue, mat2: TensorValue) -> TensorValue:
    """mm(Tensor self, Tensor mat2) -> Tensor"""
    return matmul_ops.mm(self, mat2)


mul = pointwise((aten.mul.Scalar, aten.mul.Tensor), arithmetic.mul)


@lowering(aten.mv.default)
def aten_mv(self: TensorValue, vec: TensorValue) -> TensorValue:
    """mv(Tensor self, Tensor vec) -> Tensor"""
    return ops.cast(matmul_ops.mv(self, vec), self.dtype)


@lowering(aten.native_dropout.default)
def aten_native_dropout(
    input: TensorValue, p: float, train: bool | None
) -> tuple[TensorValue, TensorValue]:
    """native_dropout(Tensor input, float p, bool? train) -> (Tensor, Tensor)"""
    return random.dropout(input, p, train)


@lowering(aten.native_group_norm.default)
def aten_native_group_norm(
    input: TensorValue,
    weight: TensorValue | None,
    bias: TensorValue | None,
    N: IntLike,
    C: IntLike,
    HxW: IntLike,
    group: int,
    eps: float,
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """native_group_norm(Tensor input, Tensor? weight, Tensor? bias, SymInt N, SymInt C, SymInt HxW, int group, float eps) -> (Tensor, Tensor, Tensor)"""
    return normalization.group_norm(input, weight, bias, group, eps)


@lowering(aten.native_layer_norm.default)
def aten_native_layer_norm(
    input: TensorValue,
    normalized_shape: Sequence[IntLike],
    weight: TensorValue | None,
    bias: TensorValue | None,
    eps: float,
) -> tuple[TensorValue, TensorValue, TensorValue]:
    """native_layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)"""
    out, *statistics = normalization.layer_norm(input, normalized_shape, weight, bias, eps)
    kinds = [to_max(expected(i).dtype) for i in (1, 2)]
    casts = [arithmetic.cast_value(s, kind) for s, kind in zip(statistics, kinds, strict=True)]
    return out, casts[0], casts[1]


ne = pointwise((aten.ne.Scalar, aten.ne.Tensor), comparison.not_equal, promotion=BOOL)
neg = pointwise(aten.neg.default, arithmetic.negate)


@lowering(aten.nonzero.default)
def aten_nonzero(self: TensorValue) -> TensorValue:
    """nonzero(Tensor self) -> Tensor"""
    return indexing.nonzero(self, expected_shape()[0])


@lowering(aten.permute.default)
def aten_permute(self: TensorValue, dims: Sequence[int]) -> TensorValue:
    """permute(Tensor(a) self, int[] dims) -> Tensor(a)"""
    return shape.permute(self, dims)


pow_scalar_base = pointwise(aten.pow.Scalar, transcendental.power, operands=("self", "exponent"))


@lowering(aten.pow.Tensor_Scalar)
def aten_pow_tensor_scalar(self: TensorValue, exponent: Scalar) -> TensorValue:
    """pow.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor"""
    out = promoted_dtype([self, exponent])
    x = arithmetic.cast_value(self, accumulation_dtype(out))
    if isinstance(exponent, Dim | TensorValue):
        exponent = as_tensor(exponent, x.dtype, x.device)
    return arithmetic.cast_value(transcendental.power_scalar(x, exponent), out)


pow_ = pointwise(aten.pow.Tensor_Tensor, transcendental.power, operands=("self", "exponent"))
prod = reduction(
    (aten.prod.default, aten.prod.dim_int), reduce_ops.prod_axis, promotion=Promotion.INT_TO_LONG
)


@lowering(aten.rand.default)
def aten_rand(
    size: Sequence[IntLike],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> TensorValue:
    """rand(SymInt[] size, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""
    return random.uniform()


@lowering(aten.rand_like.default)
def aten_rand_like(
    self: TensorValue,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> TensorValue:
    """rand_like(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor"""
    return random.uniform()


@lowering(aten.randn.default)
def aten_randn(
    size: Sequence[IntLike],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> TensorValue:
    """randn(SymInt[] size, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""
    return random.normal()


@lowering(aten.randn_like.default)
def aten_randn_like(
    self: TensorValue,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> TensorValue:
    """randn_like(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor"""
    return random.normal()


reciprocal = pointwise(aten.reciprocal.default, arithmetic.reciprocal, promotion=FLOAT)
relu = pointwise(aten.relu.default, activations.relu)
remainder = pointwise((aten.remainder.Scalar, aten.remainder.Tensor), arithmetic.remainder)


@lowering(aten.repeat.default)
def aten_repeat(self: TensorValue, repeats: Sequence[IntLike]) -> TensorValue:
    """repeat(Tensor self, SymInt[] repeats) -> Tensor"""
    return shape.repeat(self, repeats)


@lowering(aten.roll.default)
def aten_roll(
    self: TensorValue, shifts: Sequence[IntLike], dims: Sequence[int] = ()
) -> TensorValue:
    """roll(Tensor self, SymInt[1] shifts, int[1] dims=[]) -> Tensor"""
    return shape.roll(self, shifts, dims)


round_ = pointwise(aten.round.default, arithmetic.round_even)
rsqrt = pointwise(aten.rsqrt.default, ops.rsqrt, promotion=FLOAT)


@lowering(aten.scalar_tensor.default)
def aten_scalar_tensor(
    s: Scalar,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> TensorValue:
    """scalar_tensor(Scalar s, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""
    return _full(s)


@lowering(aten.scatter.reduce)
def aten_scatter_reduce(
    self: TensorValue, dim: int, index: TensorValue, src: TensorValue, *, reduce: str
) -> TensorValue:
    """scatter.reduce(Tensor self, int dim, Tensor index, Tensor src, *, str reduce) -> Tensor"""
    return indexing.scatter(self, dim, index, shape.crop_to(src, index), reduce)


@lowering(aten.scatter.src)
def aten_scatter(self: TensorValue, dim: int, index: TensorValue, src: TensorValue) -> TensorValue:
    """scatter.src(Tensor self, int dim, Tensor index, Tensor src) -> Tensor"""
    return indexing.scatter(self, dim, index, shape.crop_to(src, index))


@lowering(aten.scatter.value)
def aten_scatter_value(
    self: TensorValue, dim: int, index: TensorValue, value: Scalar
) -> TensorValue:
    """scatter.value(Tensor self, int dim, Tensor index, Scalar value) -> Tensor"""
    source = shape.filled(value, list(index.shape), self.dtype, self.device)
    return indexing.scatter(self, dim, index, source)


@lowering(aten.scatter.value_reduce)
def aten_scatter_value_reduce(
    self: TensorValue, dim: int, index: TensorValue, value: Scalar, *, reduce: str
) -> TensorValue:
    """scatter.value_reduce(Tensor self, int dim, Tensor index, Scalar value, *, str reduce) -> Tensor"""
    source = shape.filled(value, list(index.shape), self.dtype, self.device)
    return indexing.scatter(self, dim, index, source, reduce)


@lowering(aten.scatter_add.default)
def aten_scatter_add(
    self: TensorValue, dim: int, index: TensorValue, src: TensorValue
) -> TensorValue:
    """scatter_add(Tensor self, int dim, Tensor index, Tensor src) -> Tensor"""
    return indexing.scatter(self, dim, index, shape.crop_to(src, index), "add")


@lowering(aten.select.int)
def aten_select(self: TensorValue, dim: int, index: IntLike | TensorValue) -> TensorValue:
    """select.int(Tensor(a) self, int dim, SymInt index) -> Tensor(a)"""
    return shape.select(self, dim, index)


@lowering(aten.select_scatter.default)
def aten_select_scatter(
    self: TensorValue, src: TensorValue, dim: int, index: IntLike
) -> TensorValue:
    """select_scatter(Tensor self, Tensor src, int dim, SymInt index) -> Tensor"""
    axis = dim % self.rank
    column = ops.unsqueeze(src, axis)
    return shape.write_slice(self, column, axis, index, 1, 1)


sigmoid = pointwise(aten.sigmoid.default, activations.sigmoid, promotion=FLOAT)
sign = pointwise(aten.sign.default, comparison.sign)
silu = pointwise(aten.silu.default, activations.silu)
sin = pointwise(aten.sin.default, ops.sin, promotion=FLOAT)


@lowering(aten.slice.Tensor)
def aten_slice(
    self: TensorValue,
    dim: int = 0,
    start: IntLike | TensorValue | None = None,
    end: IntLike | TensorValue | None = None,
    step: int = 1,
) -> TensorValue:
    """slice.Tensor(Tensor(a) self, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor(a)"""
    axis = dim % self.rank
    return shape.slice_axis(self, axis, start, end, step, expected_shape()[axis])


@lowering(aten.slice_scatter.default)
def aten_slice_scatter(
    self: TensorValue,
    src: TensorValue,
    dim: int = 0,
    start: IntLike | None = None,
    end: IntLike | None = None,
    step: int = 1,
) -> TensorValue:
    """slice_scatter(Tensor self, Tensor src, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor"""
    axis = dim % self.rank
    return shape.write_slice(self, src, axis, start or 0, step, src.shape[axis])


softplus = pointwise(aten.softplus.default, activations.softplus)


@lowering(aten.sort.default)
def aten_sort(
    self: TensorValue, dim: int = -1, descending: bool = False
) -> tuple[TensorValue, TensorValue]:
    """sort(Tensor self, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)"""
    return sorting.sort(self, dim, descending)


@lowering(aten.sort.stable)
def aten_sort_stable(
    self: TensorValue, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[TensorValue, TensorValue]:
    """sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)"""
    return sorting.sort(self, dim, descending)


@lowering(aten.split_with_sizes.default)
def aten_split_with_sizes(
    self: TensorValue, split_sizes: Sequence[IntLike], dim: int = 0
) -> list[TensorValue]:
    """split_with_sizes(Tensor(a -> *) self, SymInt[] split_sizes, int dim=0) -> Tensor(a)[]"""
    return shape.split(self, split_sizes, dim)


sqrt = pointwise(aten.sqrt.default, ops.sqrt, promotion=FLOAT)
square = pointwise(aten.square.default, arithmetic.square)


@lowering(aten.squeeze.dims)
def aten_squeeze(self: TensorValue, dim: Sequence[int]) -> TensorValue:
    """squeeze.dims(Tensor(a) self, int[] dim) -> Tensor(a)"""
    return shape.view(self)


@lowering(aten.stack.default)
def aten_stack(tensors: Sequence[TensorValue], dim: int = 0) -> TensorValue:
    """stack(Tensor[] tensors, int dim=0) -> Tensor"""
    dtype = promoted_dtype(tensors)
    return shape.stack([arithmetic.cast_value(t, dtype) for t in tensors], dim)


sub = pointwise((aten.sub.Scalar, aten.sub.Tensor), arithmetic.sub)
sum_ = reduction(
    (aten.sum.default, aten.sum.dim_IntList), reduce_ops.sum_axis, promotion=Promotion.INT_TO_LONG
)
tan = pointwise(aten.tan.default, transcendental.tan, promotion=FLOAT)
tanh = pointwise(aten.tanh.default, transcendental.tanh, promotion=FLOAT)


@lowering(aten.topk.default)
def aten_topk(
    self: TensorValue, k: IntLike, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[TensorValue, TensorValue]:
    """topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor values, Tensor indices)"""
    return sorting.top_k(self, k, dim, largest)


@lowering(aten.tril.default)
def aten_tril(self: TensorValue, diagonal: IntLike = 0) -> TensorValue:
    """tril(Tensor self, SymInt diagonal=0) -> Tensor"""
    return shape.triangle(self, diagonal, lower=True)


@lowering(aten.triu.default)
def aten_triu(self: TensorValue, diagonal: IntLike = 0) -> TensorValue:
    """triu(Tensor self, SymInt diagonal=0) -> Tensor"""
    return shape.triangle(self, diagonal, lower=False)


true_divide = pointwise(
    (aten.true_divide.Scalar, aten.true_divide.Tensor), arithmetic.divide, promotion=FLOAT
)
trunc = pointwise(aten.trunc.default, arithmetic.trunc)


@lowering(aten.unfold.default)
def aten_unfold(self: TensorValue, dimension: int, size: int, step: int) -> TensorValue:
    """unfold(Tensor(a) self, int dimension, int size, int step) -> Tensor(a)"""
    return shape.unfold(self, dimension, size, step)


@lowering(aten.unsqueeze.default)
def aten_unsqueeze(self: TensorValue, dim: int) -> TensorValue:
    """unsqueeze(Tensor(a) self, int dim) -> Tensor(a)"""
    return ops.unsqueeze(self, dim % (self.rank + 1))


@lowering(aten.var.correction)
def aten_var(
    self: TensorValue,
    dim: Sequence[int] | None = None,
    *,
    correction: Scalar | None = None,
    keepdim: bool = False,
) -> TensorValue:
    """var.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor"""
    return _variance(self, dim, correction, keepdim)[0]


@lowering(aten.var_mean.correction)
def aten_var_mean(
    self: TensorValue,
    dim: Sequence[int] | None = None,
    *,
    correction: Scalar | None = None,
    keepdim: bool = False,
) -> tuple[TensorValue, TensorValue]:
    """var_mean.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> (Tensor, Tensor)"""
    return _variance(self, dim, correction, keepdim)


def _variance(
    x: TensorValue, dim: Sequence[int] | None, correction: Any, keepdim: bool
) -> tuple[TensorValue, TensorValue]:
    dims = shape.normalize_dims(dim, x.rank)
    wide = arithmetic.cast_value(x, accumulation_dtype(x.dtype))
    correction = 1.0 if correction is None else float(correction)
    results = normalization.variance(wide, dims, correction)
    if not keepdim:
        results = tuple(shape.drop_axes(r, dims) for r in results)
    return arithmetic.cast_value(results[0], x.dtype), arithmetic.cast_value(results[1], x.dtype)


@lowering(aten.view.default, aten._unsafe_view.default)
def aten_view(self: TensorValue, size: Sequence[IntLike]) -> TensorValue:
    """view(Tensor(a) self, SymInt[] size) -> Tensor(a)"""
    return shape.view(self)


@lowering(aten.where.self)
def aten_where(condition: TensorValue, self: TensorValue, other: TensorValue) -> TensorValue:
    """where.self(Tensor condition, Tensor self, Tensor other) -> Tensor"""
    dtype, device = promoted_dtype([self, other]), common_device([condition, self, other])
    return ops.where(
        as_tensor(condition, DType.bool, device),
        as_tensor(self, dtype, device),
        as_tensor(other, dtype, device),
    )


@lowering(torch.ops.prims.convert_element_type.default)
def prims_convert_element_type(a: TensorValue, dtype: torch.dtype) -> TensorValue:
    """convert_element_type(Tensor a, ScalarType dtype) -> Tensor"""
    return arithmetic.cast_value(a, to_max(dtype))


@lowering(torch.ops.torch_max_backend.attention.default)
def torch_max_backend_attention(
    query: TensorValue,
    key: TensorValue,
    value: TensorValue,
    attn_mask: TensorValue | None,
    is_causal: bool,
    scale: float,
    enable_gqa: bool,
) -> TensorValue:
    """attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal, float scale, bool enable_gqa) -> Tensor"""
    return attention_ops.attention(query, key, value, attn_mask, is_causal, scale, enable_gqa)


@lowering(torch.ops.torch_max_backend.gated_linear.default)
def torch_max_backend_gated_linear(
    input: TensorValue,
    weight: TensorValue,
    bias: TensorValue,
    *,
    activation: str,
    gates_first: bool,
) -> TensorValue:
    """gated_linear(Tensor input, Tensor weight, Tensor bias, *, str activation, bool gates_first) -> Tensor"""
    return matmul_ops.gated_linear(input, weight, bias, activation, gates_first)


@lowering(torch.ops.torch_max_backend.linear_activation.default)
def torch_max_backend_linear_activation(
    input: TensorValue, weight: TensorValue, bias: TensorValue, *, activation: str
) -> TensorValue:
    """linear_activation(Tensor input, Tensor weight, Tensor bias, *, str activation) -> Tensor"""
    return matmul_ops.biased_linear(input, weight, bias, activation)


@lowering(torch.ops.torch_max_backend.mlp.default)
def torch_max_backend_mlp(
    input: TensorValue,
    gain: TensorValue | None,
    shift: TensorValue | None,
    eps: float,
    weight: TensorValue,
    bias: TensorValue,
    out_weight: TensorValue,
    out_bias: TensorValue,
    scale: TensorValue | None,
    *,
    activation: str,
    centred: bool,
    packed: bool = False,
) -> TensorValue:
    """mlp(Tensor input, Tensor? gain, Tensor? shift, float eps, Tensor weight, Tensor bias, Tensor out_weight, Tensor out_bias, Tensor? scale, *, str activation, bool centred, bool packed=False) -> Tensor"""
    norm = block_ops.Norm(gain, shift, eps, centred)
    layers = [(weight, bias), (out_weight, out_bias)]
    return block_ops.mlp(input, norm, layers, scale, activation, packed)


@lowering(torch.ops.torch_max_backend.packed_convolution.default)
def torch_max_backend_packed_convolution(
    input: TensorValue,
    panels: TensorValue,
    bias: TensorValue | None,
    filters: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> TensorValue:
    """packed_convolution(Tensor input, Tensor panels, Tensor? bias, int filters, int[] kernel, int[] stride, int[] padding, int[] dilation) -> Tensor"""
    return convolution_ops.packed_convolution(
        input, panels, bias, filters, kernel, stride, padding, dilation
    )


@lowering(torch.ops.torch_max_backend.packed_gated_linear.default)
def torch_max_backend_packed_gated_linear(
    input: TensorValue,
    panels: TensorValue,
    bias: TensorValue,
    *,
    activation: str,
    gates_first: bool,
) -> TensorValue:
    """packed_gated_linear(Tensor input, Tensor panels, Tensor bias, *, str activation, bool gates_first) -> Tensor"""
    return matmul_ops.gated_linear(input, panels, bias, activation, gates_first, packed=True)


@lowering(torch.ops.torch_max_backend.packed_linear.default)
def torch_max_backend_packed_linear(
    input: TensorValue,
    panels: TensorValue,
    bias: TensorValue | None,
    features: int,
    *,
    activation: str = "none",
) -> TensorValue:
    """packed_linear(Tensor input, Tensor panels, Tensor? bias, int features, *, str activation="none") -> Tensor"""
    return matmul_ops.packed_linear(input, panels, bias, features, activation)


@lowering(torch.ops.torch_max_backend.patch_embedding.default)
def torch_max_backend_patch_embedding(
    input: TensorValue, weight: TensorValue, bias: TensorValue | None
) -> TensorValue:
    """patch_embedding(Tensor input, Tensor weight, Tensor? bias) -> Tensor"""
    return convolution_ops.patch_embedding(input, weight, bias)


@lowering(torch.ops.torch_max_backend.quantize_rows.default)
def torch_max_backend_quantize_rows(
    x: TensorValue, divisor: float, eps: float, *, activation: str = "none"
) -> tuple[TensorValue, TensorValue]:
    """quantize_rows(Tensor x, float divisor, float eps, *, str activation="none") -> (Tensor, Tensor)"""
    return quantization.quantize_rows(x, divisor, eps, activation)


quick_gelu = pointwise(torch.ops.torch_max_backend.quick_gelu.default, activations.quick_gelu)


@lowering(torch.ops.torch_max_backend.rms_norm.default)
def torch_max_backend_rms_norm(
    input: TensorValue,
    normalized_shape: Sequence[IntLike],
    weight: TensorValue | None,
    eps: float,
) -> TensorValue:
    """rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, float eps) -> Tensor"""
    out = normalization.rms_norm(input, normalized_shape, weight, eps)
    return arithmetic.cast_value(out, to_max(expected().dtype))


@lowering(torch.ops.torch_max_backend.rotary_embedding.default)
def torch_max_backend_rotary_embedding(
    x: TensorValue, sin: TensorValue, cos: TensorValue, first: int
) -> TensorValue:
    """rotary_embedding(Tensor x, Tensor sin, Tensor cos, int first) -> Tensor"""
    return rotary.rotary_embedding(x, sin, cos, first)


@lowering(torch.ops.torch_max_backend.self_attention.default)
def torch_max_backend_self_attention(
    input: TensorValue,
    gain: TensorValue | None,
    shift: TensorValue | None,
    eps: float,
    weights: Sequence[TensorValue],
    biases: Sequence[TensorValue],
    out_weight: TensorValue,
    out_bias: TensorValue,
    scale: TensorValue | None,
    sin: TensorValue | None,
    cos: TensorValue | None,
    first: int,
    *,
    heads: int,
    score_scale: float,
    is_causal: bool,
    centred: bool,
    packed: bool = False,
) -> TensorValue:
    """self_attention(Tensor input, Tensor? gain, Tensor? shift, float eps, Tensor[] weights, Tensor[] biases, Tensor out_weight, Tensor out_bias, Tensor? scale, Tensor? sin, Tensor? cos, int first, *, int heads, float score_scale, bool is_causal, bool centred, bool packed=False) -> Tensor"""
    norm = block_ops.Norm(gain, shift, eps, centred)
    layers = [*zip(weights, biases, strict=True), (out_weight, out_bias)]
    rotation = None if sin is None or cos is None else Rotation(sin, cos, first)
    return block_ops.self_attention(
        input, norm, layers, scale, rotation, heads, score_scale, is_causal, packed
    )


@lowering(torch.ops.torch_max_backend.softmax_attention.default)
def torch_max_backend_softmax_attention(
    query: TensorValue,
    key: TensorValue,
    value: TensorValue,
    mask: TensorValue | None,
    scale: float,
) -> TensorValue:
    """softmax_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale) -> Tensor"""
    return attention_ops.softmax_attention(query, key, value, mask, scale)
