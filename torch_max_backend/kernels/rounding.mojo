"""From numbers of a type to float32, and back to the nearest, ties to even."""

from std.memory import Pointer, bitcast
from std.sys import CompilationTarget


@always_inline
def widened[
    dtype: DType, //, count: Int
](start: Pointer[Scalar[dtype], MutUntrackedOrigin], i: Int) -> SIMD[DType.float32, count]:
    """As many numbers, from place i on."""
    return start.unsafe_load[width=count, alignment=2](i).cast[DType.float32]()


@always_inline
def rounded[
    source: DType, //, dtype: DType, width: Int
](x: SIMD[source, width]) -> SIMD[dtype, width]:
    """As ``cast``, which without an instruction for it rounds to bfloat16 by a call per number."""
    comptime BY_CALLS = not CompilationTarget._has_feature["avx512bf16"]()
    comptime if source == DType.float32 and dtype == DType.bfloat16 and BY_CALLS:
        comptime Bits = SIMD[DType.uint32, width]
        var bits = bitcast[DType.uint32, width](x)
        var high = bits >> Bits(16)  # the high half of a float32 is a bfloat16
        var nearest = (bits + (high & Bits(1)) + Bits(0x7FFF)) >> Bits(16)
        var number = x.eq(x).select(nearest, high | Bits(0x40))  # a quiet NaN
        return bitcast[dtype, width](number.cast[DType.uint16]())
    return x.cast[dtype]()
