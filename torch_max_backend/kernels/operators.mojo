"""The operators that graphs name."""

from extensibility import InputTensor, InputVariadicTensors, ManagedTensorSlice, OutputTensor
from extensibility import foreach, register
from extensibility import _FusedInputTensor as FusedInputTensor
from extensibility import _FusedOutputTensor as FusedOutputTensor
from layout import Coord
from max.gpu.host import DeviceContext
from std.memory import Pointer
from std.memory.alloc import unsafe_alloc
from std.sys import size_of
from std.utils.index import IndexList
from .attention import Attention, Bias, Operand, attention
from .concat import copy_rows
from .contraction import contract
from .convolution import Axis, Convolution
from .fetching import Place, Places
from .functions import activate
from .gated import GatedProduct, Halves, gated_linear
from .layers import Layer
from .matmul import COLUMNS_FIRST, DEPTH_FIRST, IN_PANELS, Product, matmul
from .mlp import mlp
from .normalization import Factors, Normalization, Rows
from .permutation import Permutation
from .quantization import QuantizedRows, quantize_rows
from .rotation import Rotation
from .rounding import rounded
from .self_attention import Projections, self_attention
from .units import SUM


@register("torch_max_backend.matmul")
struct Matmul:
    """(..., M, K) a and (..., K, N) b of one type to their product; a batch axis or none."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: FusedOutputTensor[...],
        a: InputTensor[rank=output.rank, ...],
        b: InputTensor[dtype=a.dtype, rank=output.rank, ...],
        ctx: DeviceContext,
    ) capturing raises:
        _matmul[DEPTH_FIRST](output, a, b, Places(_place(output), _nothing(output)))


@register("torch_max_backend.linear")
struct Linear:
    """(..., M, K) a and (..., N, K) weight of one type to a @ weight^T; a batch axis or none. A
    packed weight has (panels, lines, columns of a panel, numbers of a unit). What is fused may read
    a tensor like the output, ``beside`` it, which is better fetched before."""

    @staticmethod
    def execute[
        packed: Bool, fetched: Bool, target: StaticString
    ](
        output: FusedOutputTensor[...],
        a: InputTensor[rank=output.rank, ...],
        weight: InputTensor[dtype=a.dtype, ...],
        beside: InputTensor[...],
        ctx: DeviceContext,
    ) capturing raises:
        comptime order = IN_PANELS if packed else COLUMNS_FIRST
        var read = _place(beside) if fetched else _nothing(output)
        _matmul[order](output, a, weight, Places(_place(output), read))


@register("torch_max_backend.biased_linear")
struct BiasedLinear:
    """The activation of a @ weight^T plus a bias (N), rounded; much faster here than fused by MAX.
    ``beside`` as for a linear layer."""

    @staticmethod
    def execute[
        activation: StaticString, packed: Bool, fetched: Bool, target: StaticString
    ](
        output: FusedOutputTensor[rank=2, ...],
        a: InputTensor[rank=2, ...],
        weight: InputTensor[dtype=a.dtype, ...],
        bias: InputTensor[dtype=a.dtype, rank=1, ...],
        beside: InputTensor[...],
        ctx: DeviceContext,
    ) capturing raises:
        comptime order = IN_PANELS if packed else COLUMNS_FIRST
        var read = _place(beside) if fetched else _nothing(output)

        @always_inline
        def store[
            width: Int
        ](b: Int, m: Int, n: Int, v: SIMD[SUM[a.dtype], width]) {var output, var bias}:
            var x = v.cast[DType.float32]()
            x += bias.load[width](IndexList[1](n)).cast[DType.float32]()
            var result = activate[activation, output.dtype](x)
            output._lambda_store[width=width, element_alignment=1](
                IndexList[output.rank](m, n), rounded[output.dtype](result)
            )

        matmul[a.dtype](_product[order](output, a, weight), Places(_place(output), read), store)


@register("torch_max_backend.gated_linear")
struct GatedLinear:
    """Of a @ weight^T plus a bias (N), rounded, one half of the columns times the activation of the
    other, which comes first or second; a packed weight has both in each panel."""

    @staticmethod
    def execute[
        activation: StaticString, gates_first: Bool, packed: Bool, target: StaticString
    ](
        output: OutputTensor[rank=2, ...],
        a: InputTensor[dtype=output.dtype, rank=2, ...],
        weight: InputTensor[dtype=output.dtype, ...],
        bias: InputTensor[dtype=output.dtype, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime dtype = output.dtype
        comptime order = IN_PANELS if packed else COLUMNS_FIRST
        var halves = Halves(output.dim_size(1), gates_first)
        var product = rebind[Product[dtype, order]](
            _product_of[order](a, weight, 2 * output.dim_size(1))
        )
        var numbers = _start[dtype](bias)
        var results = output.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        comptime if packed:
            gated_linear[dtype, activation](product, numbers, halves, results)
        else:
            var rows = rebind[Product[dtype, COLUMNS_FIRST]](product)
            gated_linear[dtype, activation](
                GatedProduct[dtype](rows, halves), numbers, halves, results
            )


@register("torch_max_backend.mlp")
struct MLP:
    """Adds to x, times a scale, two linear layers with an activation between them, each with its bias,
    of the rows of x normalised; weights (N, K) or packed. The output holds these rows before, and
    a result that nothing else needs what the activation makes."""

    @staticmethod
    def execute[
        activation: StaticString,
        centred: Bool,
        scaled: Bool,
        packed: Bool,
        target: StaticString,
    ](
        output: OutputTensor[rank=2, ...],
        hidden: OutputTensor[dtype=output.dtype, rank=2, ...],
        x: InputTensor[dtype=output.dtype, rank=2, ...],
        gain: InputTensor[rank=1, ...],
        shift: InputTensor[rank=1, ...],
        eps: Float64,
        weight: InputTensor[dtype=output.dtype, ...],
        bias: InputTensor[dtype=output.dtype, rank=1, ...],
        out_weight: InputTensor[dtype=output.dtype, ...],
        out_bias: InputTensor[dtype=output.dtype, rank=1, ...],
        scale: InputTensor[rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime dtype = output.dtype
        comptime order = IN_PANELS if packed else COLUMNS_FIRST
        mlp[activation, scaled](
            _normalization[centred](output, x, gain, shift, eps),
            _layer[order](output, weight, bias, hidden),
            _layer[order](hidden, out_weight, out_bias, output),
            _factors(scale),
        )


@register("torch_max_backend.self_attention")
struct SelfAttention:
    """Adds to x, (batch * length, K), times a scale, attention among the rows of a batch, which are
    normalised: a linear layer each for queries, keys and values, K a multiple of a panel, or one
    that has them ``joined``, which is then given three times, and one for the result, each with its
    bias; weights (N, K) or packed. Sines and cosines as for attention. The output holds the rows
    normalised before, and results that nothing else needs the operands of attention and its own."""

    @staticmethod
    def execute[
        centred: Bool,
        scaled: Bool,
        packed: Bool,
        joined: Bool,
        rotated: Bool,
        target: StaticString,
    ](
        output: OutputTensor[rank=2, ...],
        projected: OutputTensor[dtype=output.dtype, rank=2, ...],
        attended: OutputTensor[dtype=output.dtype, rank=2, ...],
        x: InputTensor[dtype=output.dtype, rank=2, ...],
        gain: InputTensor[rank=1, ...],
        shift: InputTensor[rank=1, ...],
        eps: Float64,
        q_weight: InputTensor[dtype=output.dtype, ...],
        q_bias: InputTensor[dtype=output.dtype, rank=1, ...],
        k_weight: InputTensor[dtype=output.dtype, ...],
        k_bias: InputTensor[dtype=output.dtype, rank=1, ...],
        v_weight: InputTensor[dtype=output.dtype, ...],
        v_bias: InputTensor[dtype=output.dtype, rank=1, ...],
        out_weight: InputTensor[dtype=output.dtype, ...],
        out_bias: InputTensor[dtype=output.dtype, rank=1, ...],
        scale: InputTensor[rank=1, ...],
        sin: InputTensor[...],
        cos: InputTensor[...],
        first: Int64,
        batch: Int64,
        heads: Int64,
        score_scale: Float32,
        causal: Int64,
        ctx: DeviceContext,
    ) raises:
        comptime dtype = output.dtype
        comptime order = IN_PANELS if packed else COLUMNS_FIRST
        comptime size = size_of[dtype]()
        var columns = x.dim_size(1)
        var length = x.dim_size(0) // max(1, Int(batch))
        var width = columns // Int(heads)
        var queries = _product_of[order](output, q_weight, columns)
        var projections = Projections[dtype, order](
            queries,
            queries.column(0, columns) if joined else _start[DType.uint8](k_weight),
            queries.column(0, 2 * columns) if joined else _start[DType.uint8](v_weight),
        )
        var biases = _start[dtype](q_bias)
        comptime if not joined:
            biases = unsafe_alloc[Scalar[dtype]](3 * columns)
            for n in range(columns):
                biases[unsafe_offset=n] = _start[dtype](q_bias)[unsafe_offset=n]
                biases[unsafe_offset=columns + n] = _start[dtype](k_bias)[unsafe_offset=n]
                biases[unsafe_offset=2 * columns + n] = _start[dtype](v_bias)[unsafe_offset=n]
        var start = _start[DType.uint8](projected)
        var row = columns * size
        var head = width * size
        var rotation = _rotation[rotated](sin, cos, first)
        var call = Attention[dtype](
            Operand.of_rows(start, length, 3 * row, head),
            Operand.of_rows(start.unsafe_offset(row), length, 3 * row, head),
            Operand.of_rows(start.unsafe_offset(2 * row), length, 3 * row, head),
            rotation,
            rotation,
            Bias[dtype](_start[SUM[dtype]](x), False, 0, 0, 0),
            Operand.of_rows(_start[DType.uint8](attended), length, row, head),
            Int(batch),
            Int(heads),
            Int(heads),
            length,
            length,
            width,
            width,
            score_scale.cast[SUM[dtype]](),
            causal != 0,
            0,
        )
        self_attention[scaled](
            _normalization[centred](output, x, gain, shift, eps),
            Layer[dtype, Projections[dtype, order]](
                projections, biases, _start[dtype](projected)
            ),
            call,
            _layer[order](attended, out_weight, out_bias, output),
            _factors(scale),
        )
        comptime if not joined:
            biases.unsafe_free()


@register("torch_max_backend.convolution")
struct Convolve:
    """Channels-last (N, D, H, W, C) images and (O, kD, kH, kW, C / groups) filters of one type to
    (N, D', H', W', O). Packed filters are those of one group, as a linear layer's weight."""

    @staticmethod
    def execute[
        packed: Bool, target: StaticString
    ](
        output: FusedOutputTensor[rank=5, ...],
        images: InputTensor[rank=5, ...],
        filters: InputTensor[dtype=images.dtype, ...],
        groups: Int64,
        taps_d: Int64,
        taps_h: Int64,
        taps_w: Int64,
        stride_d: Int64,
        stride_h: Int64,
        stride_w: Int64,
        dilation_d: Int64,
        dilation_h: Int64,
        dilation_w: Int64,
        padding_d: Int64,
        padding_h: Int64,
        padding_w: Int64,
        spacing_d: Int64,
        spacing_h: Int64,
        spacing_w: Int64,
        ctx: DeviceContext,
    ) capturing raises:
        comptime dtype = images.dtype
        var d = output.dim_size(1)
        var h = output.dim_size(2)
        var w = output.dim_size(3)
        var columns = output.dim_size(4) // Int(groups)

        @always_inline
        def store[
            width: Int
        ](g: Int, m: Int, n: Int, v: SIMD[SUM[dtype], width]) {var output, d, h, w, columns}:
            var place = IndexList[output.rank](
                m // (d * h * w), m // (h * w) % d, m // w % h, m % w, g * columns + n
            )
            output._lambda_store[width=width, element_alignment=1](place, rounded[output.dtype](v))

        contract[dtype](
            Convolution[dtype, packed](
                _start[DType.uint8](images),
                _start[DType.uint8](filters),
                images.dim_size(0),
                Int(groups),
                images.dim_size(4) // Int(groups),
                columns,
                _axis[1](output, images, taps_d, stride_d, dilation_d, padding_d, spacing_d),
                _axis[2](output, images, taps_h, stride_h, dilation_h, padding_h, spacing_h),
                _axis[3](output, images, taps_w, stride_w, dilation_w, padding_w, spacing_w),
            ),
            Places(_place(output, Int(groups)), _nothing(output)),
            store,
        )


@register("torch_max_backend.layer_norm")
struct LayerNorm:
    """Rows normalised to a mean of 0 and a variance of 1, times gain plus shift, of one number or
    one per column."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[rank=2, ...],
        x: InputTensor[dtype=output.dtype, rank=2, ...],
        gain: InputTensor[rank=1, ...],
        shift: InputTensor[rank=1, ...],
        eps: Float64,
        ctx: DeviceContext,
    ) raises:
        _normalization[True](output, x, gain, shift, eps).in_parallel()


@register("torch_max_backend.rms_norm")
struct RMSNorm:
    """Rows normalised to a mean square of 1, times gain, of one number or one per column."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[rank=2, ...],
        x: InputTensor[dtype=output.dtype, rank=2, ...],
        gain: InputTensor[rank=1, ...],
        eps: Float64,
        ctx: DeviceContext,
    ) raises:
        _normalization[False](output, x, gain, gain, eps).in_parallel()


@register("torch_max_backend.round")
struct Round:
    """Numbers as the nearest ones of another type."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[...],
        x: FusedInputTensor[dtype=DType.float32, rank=output.rank, ...],
        ctx: DeviceContext,
    ) capturing raises:
        @always_inline
        def nearest[width: Int](place: Coord[...]) {var x} -> SIMD[output.dtype, width]:
            return rounded[output.dtype](x._fused_load[width](place))

        foreach[target=target](nearest, output, ctx)


@register("torch_max_backend.quantize_rows")
struct QuantizeRows:
    """Rows of numbers, after the activation, to int8 and a scale each."""

    @staticmethod
    def execute[
        activation: StaticString, target: StaticString
    ](
        output: OutputTensor[dtype=DType.int8, rank=2, ...],
        scales: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[rank=2, ...],
        divisor: Float32,
        eps: Float32,
        ctx: DeviceContext,
    ) raises:
        var call = QuantizedRows[x.dtype](
            _start[x.dtype](x),
            output.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            scales.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            x.dim_size(0),
            x.dim_size(1),
        )
        quantize_rows[x.dtype, activation](call, divisor, eps)


@register("torch_max_backend.concat")
struct Concat:
    """(outer, n_i, inner) tensors to (outer, sum of n_i, inner)."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[rank=3, ...],
        inputs: InputVariadicTensors[dtype=output.dtype, rank=3, ...],
        ctx: DeviceContext,
    ) raises:
        comptime size = size_of[output.dtype]()
        var start = output.unsafe_ptr().unsafe_bitcast[UInt8]()
        var place = start.unsafe_origin_cast[MutUntrackedOrigin]()
        var stride = output.dim_size(1) * output.dim_size(2) * size
        comptime for i in range(inputs.size):
            var row = inputs[i].dim_size(1) * inputs[i].dim_size(2) * size
            copy_rows(_start[DType.uint8](inputs[i]), row, inputs[i].dim_size(0), place, stride)
            place = place.unsafe_offset(row)


@register("torch_max_backend.permute")
struct Permute:
    """A tensor with its axes in another order: axis i of the output is axis order[i] of x."""

    @staticmethod
    def execute[
        target: StaticString
    ](
        output: OutputTensor[...],
        x: InputTensor[dtype=output.dtype, rank=output.rank, ...],
        order: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var sizes = IndexList[output.rank]()
        var strides = IndexList[output.rank]()
        comptime for axis in range(output.rank):
            sizes[axis] = output.dim_size(axis)
            strides[axis] = 1
            for inner in range(Int(order[axis]) + 1, x.rank):
                strides[axis] *= x.dim_size(inner)
        Permutation(_start[x.dtype](x), _start[output.dtype](output), sizes, strides).run()


@register("torch_max_backend.attention")
struct DotProductAttention:
    """(B, L, H, F) output of queries, keys and values given by their bases, offsets and strides
    over batch, heads and rows, in numbers; E is the width of queries and keys.

    Where ``masked``, a float32 bias (B or 1, H or 1, L or 1, S) is added to the scores; a row whose
    scores are all -inf gives ``empty``. Rotated rows have sines and cosines in float32, (B or 1,
    H or 1, rows from the first one to be rotated on, E).
    """

    @staticmethod
    def execute[
        masked: Bool, rotated_queries: Bool, rotated_keys: Bool, target: StaticString
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
        empty: Float32,
        bias: InputTensor[...],
        q_sin: InputTensor[...],
        q_cos: InputTensor[...],
        q_first: Int64,
        k_sin: InputTensor[...],
        k_cos: InputTensor[...],
        k_first: Int64,
        ctx: DeviceContext,
    ) raises:
        attention[output.dtype](
            Attention[output.dtype](
                _operand(query, q_offset, q_batch, q_head, q_row),
                _operand(key, k_offset, k_batch, k_head, k_row),
                _operand(value, v_offset, v_batch, v_head, v_row),
                _rotation[rotated_queries](q_sin, q_cos, q_first),
                _rotation[rotated_keys](k_sin, k_cos, k_first),
                _bias[output.dtype, masked](bias),
                _target(output),
                output.dim_size(0),
                output.dim_size(2),
                Int(key_heads),
                output.dim_size(1),
                Int(keys),
                Int(width),
                output.dim_size(3),
                scale.cast[SUM[output.dtype]](),
                causal != 0,
                empty.cast[SUM[output.dtype]](),
            )
        )


@always_inline
def _matmul[
    order: Int
](
    output: FusedOutputTensor[...],
    a: InputTensor[rank=output.rank, ...],
    right: InputTensor[dtype=a.dtype, ...],
    places: Places,
) capturing:
    @always_inline
    def store[width: Int](b: Int, m: Int, n: Int, v: SIMD[SUM[a.dtype], width]) {var output}:
        var place = IndexList[output.rank]()
        comptime if output.rank == 3:
            place[0] = b
        place[output.rank - 2] = m
        place[output.rank - 1] = n
        output._lambda_store[width=width, element_alignment=1](place, rounded[output.dtype](v))

    matmul[a.dtype](_product[order](output, a, right), places, store)


@always_inline
def _product[
    order: Int
](
    output: FusedOutputTensor[...],
    a: InputTensor[rank=output.rank, ...],
    right: InputTensor[dtype=a.dtype, ...],
) -> Product[a.dtype, order]:
    comptime last = a.rank - 1
    return Product[a.dtype, order](
        _start[DType.uint8](a),
        _start[DType.uint8](right),
        a.dim_size(0) if a.rank == 3 else 1,
        a.dim_size(last - 1),
        output.dim_size(last),
        a.dim_size(last),
    )


@always_inline
def _layer[
    order: Int
](
    a: OutputTensor[rank=2, ...],
    weight: InputTensor[dtype=a.dtype, ...],
    bias: InputTensor[dtype=a.dtype, rank=1, ...],
    output: OutputTensor[dtype=a.dtype, rank=2, ...],
) -> Layer[a.dtype, Product[a.dtype, order]]:
    return Layer[a.dtype, Product[a.dtype, order]](
        _product_of[order](a, weight, output.dim_size(1)),
        _start[a.dtype](bias),
        _start[a.dtype](output),
    )


@always_inline
def _product_of[
    order: Int
](a: ManagedTensorSlice[rank=2, ...], right: ManagedTensorSlice, columns: Int) -> Product[
    a.dtype, order
]:
    """Of a matrix and a right operand that has as many columns."""
    return Product[a.dtype, order](
        _start[DType.uint8](a),
        _start[DType.uint8](right),
        1,
        a.dim_size(0),
        columns,
        a.dim_size(1),
    )


@always_inline
def _place(x: ManagedTensorSlice, groups: Int = 1) -> Place:
    """Where a dense (batch, rows, columns) lies or, of groups, their columns beside each other."""
    comptime size = size_of[x.dtype]()
    comptime last = x.rank - 1
    var row = x.dim_size(last) * size
    return Place(
        _start[DType.uint8](x),
        x.dim_size(last - 1) * row if groups == 1 else row // groups,
        row,
        size,
    )


@always_inline
def _nothing(x: ManagedTensorSlice) -> Place:
    return Place(_start[DType.uint8](x), 0, 0, 0)


@always_inline
def _axis[
    i: Int
](
    output: FusedOutputTensor[rank=5, ...],
    images: InputTensor[rank=5, ...],
    taps: Int64,
    stride: Int64,
    dilation: Int64,
    padding: Int64,
    spacing: Int64,
) -> Axis:
    return Axis(
        images.dim_size(i),
        output.dim_size(i),
        Int(taps),
        Int(stride),
        Int(dilation),
        Int(padding),
        Int(spacing),
    )


@always_inline
def _bias[dtype: DType, present: Bool](x: InputTensor[...]) -> Bias[dtype]:
    var start = _start[SUM[dtype]](x)
    comptime if present:
        return Bias[dtype](start, True, _stride(x, 0), _stride(x, 1), _stride(x, 2))
    else:
        return Bias[dtype](start, False, 0, 0, 0)


@always_inline
def _rotation[present: Bool](sin: InputTensor[...], cos: InputTensor[...], first: Int64) -> Rotation:
    var sines = _start[DType.float32](sin)
    var cosines = _start[DType.float32](cos)
    comptime if present:
        return Rotation(sines, cosines, True, Int(first), _stride(sin, 0), _stride(sin, 1))
    else:
        return Rotation(sines, cosines, False, 0, 0, 0)


@always_inline
def _stride(x: InputTensor[...], axis: Int) -> Int:
    """Of a dense tensor's axis, in numbers; 0 where it is broadcast."""
    var stride = 0 if x.dim_size(axis) == 1 else 1
    for i in range(axis + 1, x.rank):
        stride *= x.dim_size(i)
    return stride


@always_inline
def _normalization[
    centred: Bool
](
    output: OutputTensor[rank=2, ...],
    x: InputTensor[dtype=output.dtype, rank=2, ...],
    gain: InputTensor[rank=1, ...],
    shift: InputTensor[rank=1, ...],
    eps: Float64,
) -> Normalization[output.dtype, gain.dtype, shift.dtype, centred]:
    return Normalization[output.dtype, gain.dtype, shift.dtype, centred](
        Rows[output.dtype](
            _start[output.dtype](x), _start[output.dtype](output), x.dim_size(0), x.dim_size(1)
        ),
        _factors(gain),
        _factors(shift),
        eps.cast[SUM[output.dtype]](),
    )


@always_inline
def _factors(x: InputTensor[rank=1, ...]) -> Factors[x.dtype]:
    return Factors[x.dtype](_start[x.dtype](x), x.dim_size(0) == 1)


@always_inline
def _start[dtype: DType](x: ManagedTensorSlice) -> Pointer[Scalar[dtype], MutUntrackedOrigin]:
    return (
        x.unsafe_ptr()
        .unsafe_bitcast[Scalar[dtype]]()
        .unsafe_mut_cast[True]()
        .unsafe_origin_cast[MutUntrackedOrigin]()
    )


@always_inline
def _operand(x: InputTensor[...], offset: Int64, batch: Int64, head: Int64, row: Int64) -> Operand:
    comptime size = size_of[x.dtype]()
    return Operand(
        _start[DType.uint8](x).unsafe_offset(Int(offset) * size),
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
