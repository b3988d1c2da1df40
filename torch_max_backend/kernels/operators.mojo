"""The operators that graphs name."""

from extensibility import InputTensor, OutputTensor, register
from extensibility import _FusedOutputTensor as FusedOutputTensor
from max.gpu.host import DeviceContext
from std.sys import size_of
from std.utils.index import IndexList
from .attention import Attention, Bias, Operand, attention
from .functions import gelu, gelu_tanh
from .linear import Product, linear
from .units import BytePointer, FloatPointer


@register("torch_max_backend.linear")
struct Linear:
    """(M, K) a and (N, K) weight of one type to the (M, N) product in float32."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: FusedOutputTensor[dtype=DType.float32, rank=2, ...],
        a: InputTensor[rank=2, ...],
        weight: InputTensor[dtype=a.dtype, rank=2, ...],
        ctx: DeviceContext,
    ) capturing raises:
        @always_inline
        def store[width: Int](m: Int, n: Int, v: SIMD[DType.float32, width]) {var output}:
            output._lambda_store[width=width, element_alignment=1](
                IndexList[output.rank](m, n), v.cast[output.dtype]()
            )

        linear[a.dtype](_product(a, weight), store)


@register("torch_max_backend.linear_gelu")
struct LinearGelu:
    """The activation of the product plus a bias (N); much faster here than fused by MAX."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: FusedOutputTensor[dtype=DType.float32, rank=2, ...],
        a: InputTensor[rank=2, ...],
        weight: InputTensor[dtype=a.dtype, rank=2, ...],
        bias: InputTensor[dtype=a.dtype, rank=1, ...],
        ctx: DeviceContext,
    ) capturing raises:
        @always_inline
        def store[width: Int](m: Int, n: Int, v: SIMD[DType.float32, width]) {var output, var bias}:
            var x = v + bias.load[width](IndexList[1](n)).cast[DType.float32]()
            output._lambda_store[width=width, element_alignment=1](
                IndexList[output.rank](m, n), gelu(x).cast[output.dtype]()
            )

        linear[a.dtype](_product(a, weight), store)


@register("torch_max_backend.linear_gelu_tanh")
struct LinearGeluTanh:
    """LinearGelu with the tanh approximation."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: FusedOutputTensor[dtype=DType.float32, rank=2, ...],
        a: InputTensor[rank=2, ...],
        weight: InputTensor[dtype=a.dtype, rank=2, ...],
        bias: InputTensor[dtype=a.dtype, rank=1, ...],
        ctx: DeviceContext,
    ) capturing raises:
        @always_inline
        def store[width: Int](m: Int, n: Int, v: SIMD[DType.float32, width]) {var output, var bias}:
            var x = v + bias.load[width](IndexList[1](n)).cast[DType.float32]()
            output._lambda_store[width=width, element_alignment=1](
                IndexList[output.rank](m, n), gelu_tanh(x).cast[output.dtype]()
            )

        linear[a.dtype](_product(a, weight), store)


@register("torch_max_backend.attention")
struct PlainAttention:
    """(B, L, H, F) output of queries, keys and values given by their bases, offsets and strides
    over batch, heads and rows, in numbers; E is the width of queries and keys."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[rank=4, ...],
        query: InputTensor[dtype=output.dtype, rank=1, ...],
        q_offset: Int64,
        q_batch: Int64,
        q_head: Int64,
        q_row: Int64,
        key: InputTensor[dtype=output.dtype, rank=1, ...],
        k_offset: Int64,
        k_batch: Int64,
        k_head: Int64,
        k_row: Int64,
        value: InputTensor[dtype=output.dtype, rank=1, ...],
        v_offset: Int64,
        v_batch: Int64,
        v_head: Int64,
        v_row: Int64,
        key_heads: Int64,
        keys: Int64,
        width: Int64,
        scale: Float32,
        causal: Int64,
        ctx: DeviceContext,
    ) raises:
        var none = Bias(_bytes(query).unsafe_bitcast[Float32](), False, 0, 0, 0)
        attention[output.dtype](
            Attention[output.dtype](
                _operand(query, q_offset, q_batch, q_head, q_row),
                _operand(key, k_offset, k_batch, k_head, k_row),
                _operand(value, v_offset, v_batch, v_head, v_row),
                none,
                _target(output),
                output.dim_size(0),
                output.dim_size(2),
                Int(key_heads),
                output.dim_size(1),
                Int(keys),
                Int(width),
                output.dim_size(3),
                scale,
                causal != 0,
            )
        )


@register("torch_max_backend.masked_attention")
struct MaskedAttention:
    """Attention with a float32 bias (B or 1, H or 1, L or 1, S) that is added to the scores."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[rank=4, ...],
        query: InputTensor[dtype=output.dtype, rank=1, ...],
        q_offset: Int64,
        q_batch: Int64,
        q_head: Int64,
        q_row: Int64,
        key: InputTensor[dtype=output.dtype, rank=1, ...],
        k_offset: Int64,
        k_batch: Int64,
        k_head: Int64,
        k_row: Int64,
        value: InputTensor[dtype=output.dtype, rank=1, ...],
        v_offset: Int64,
        v_batch: Int64,
        v_head: Int64,
        v_row: Int64,
        key_heads: Int64,
        keys: Int64,
        width: Int64,
        scale: Float32,
        causal: Int64,
        bias: InputTensor[dtype=DType.float32, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        var row = bias.dim_size(3)
        var head = bias.dim_size(2) * row
        var added = Bias(
            _bytes(bias).unsafe_bitcast[Float32](),
            True,
            0 if bias.dim_size(0) == 1 else bias.dim_size(1) * head,
            0 if bias.dim_size(1) == 1 else head,
            0 if bias.dim_size(2) == 1 else row,
        )
        attention[output.dtype](
            Attention[output.dtype](
                _operand(query, q_offset, q_batch, q_head, q_row),
                _operand(key, k_offset, k_batch, k_head, k_row),
                _operand(value, v_offset, v_batch, v_head, v_row),
                added,
                _target(output),
                output.dim_size(0),
                output.dim_size(2),
                Int(key_heads),
                output.dim_size(1),
                Int(keys),
                Int(width),
                output.dim_size(3),
                scale,
                causal != 0,
            )
        )


@always_inline
def _product(
    a: InputTensor[rank=2, ...], weight: InputTensor[dtype=a.dtype, rank=2, ...]
) -> Product[a.dtype]:
    return Product[a.dtype](
        _bytes(a), _bytes(weight), a.dim_size(0), weight.dim_size(0), a.dim_size(1)
    )


@always_inline
def _bytes(x: InputTensor) -> BytePointer:
    return (
        x.unsafe_ptr()
        .unsafe_bitcast[UInt8]()
        .unsafe_mut_cast[True]()
        .unsafe_origin_cast[MutUntrackedOrigin]()
    )


@always_inline
def _operand(
    x: InputTensor, offset: Int64, batch: Int64, head: Int64, row: Int64
) -> Operand:
    comptime size = size_of[x.dtype]()
    return Operand(
        _bytes(x).unsafe_offset(Int(offset) * size),
        Int(batch) * size,
        Int(head) * size,
        Int(row) * size,
    )


@always_inline
def _target(output: OutputTensor[rank=4, ...]) -> Operand:
    """A dense (batch, rows, heads, width) result."""
    comptime size = size_of[output.dtype]()
    var head = output.dim_size(3) * size
    var row = output.dim_size(2) * head
    return Operand(
        output.unsafe_ptr().unsafe_bitcast[UInt8]().unsafe_origin_cast[MutUntrackedOrigin](),
        output.dim_size(1) * row,
        head,
        row,
    )
