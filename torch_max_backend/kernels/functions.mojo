"""Elementary functions on vectors of float32, as exact as ``dtype`` numbers need them."""

from std.memory import bitcast
from std.sys import CompilationTarget, llvm_intrinsic

comptime LOG2_E = Float32(1.4426950408889634)


@always_inline
def power_of_two[
    dtype: DType, width: Int
](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """2^x for numbers up to 127, 0 below 2^-126; NaN stays NaN."""
    return x.lt(-126).select(SIMD[DType.float32, width](0), _power_of_two[dtype](x))


@always_inline
def _power_of_two[
    dtype: DType, width: Int
](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """2^x for numbers from -126 to 127.

    As 2^n * 2^r with |r| <= 1/2 (Cody and Waite, 1980), 2^r by a minimax polynomial that is 2e-9
    off, for bfloat16 3e-6.
    """
    comptime Vector = SIMD[DType.float32, width]
    var n = x.__round__()
    var r = x - n
    var p: Vector
    comptime if dtype == DType.bfloat16:
        p = r.fma(Vector(9.582852944731712e-3), Vector(5.5906426161527634e-2))
        p = p.fma(r, Vector(0.24024099111557007)).fma(r, Vector(0.6931241750717163))
    else:
        p = r.fma(Vector(1.5353233902715147e-4), Vector(1.3398893643170595e-3))
        p = p.fma(r, Vector(9.61843878030777e-3)).fma(r, Vector(5.5503323674201965e-2))
        p = p.fma(r, Vector(0.24022647738456726)).fma(r, Vector(0.6931471824645996))
    return _scaled(p.fma(r, Vector(1)), n)


@always_inline
def _scaled[
    width: Int
](x: SIMD[DType.float32, width], n: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """x * 2^n for whole n from -126 to 127."""
    comptime Vector = SIMD[DType.float32, width]
    comptime if width == 16 and CompilationTarget._has_feature["avx512f"]():
        return llvm_intrinsic["llvm.x86.avx512.mask.scalef.ps.512", Vector, has_side_effect=False](
            x, n, x, Int16(-1), Int32(4)
        )
    else:
        return x * bitcast[DType.float32, width]((n.cast[DType.int32]() + 127) << 23)


@always_inline
def gelu[
    dtype: DType, width: Int
](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """The product of x and the normal distribution up to x (Hendrycks and Gimpel, 2016).

    By the tail beyond |x|, which loses no digits as 1 + erf does: 2 to the power of a polynomial that
    was fitted to the tail's logarithm. Beside itself the tail is 4e-7 off up to 2 and 6e-6 at 5,
    where it is 3e-7; for bfloat16 3e-6 and 2e-4.
    """
    comptime Vector = SIMD[DType.float32, width]
    comptime FARTHEST = Vector(11)  # where the tail is 1e-25 or less
    var u = abs(x)
    u = u.gt(FARTHEST).select(FARTHEST, u)  # passes over NaN in one instruction
    var log: Vector
    comptime if dtype == DType.bfloat16:
        log = u.fma(Vector(-1.230862141217569e-6), Vector(5.149684105736335e-5))
        log = log.fma(u, Vector(-8.657236784045764e-4)).fma(u, Vector(8.305961647327227e-3))
        log = log.fma(u, Vector(-5.364176441144454e-2)).fma(u, Vector(-0.45870308667997267))
        log = log.fma(u, Vector(-1.1511808630942413))
    else:
        log = u.fma(Vector(-2.494344663938282e-8), Vector(7.52651393386517e-7))
        log = log.fma(u, Vector(-9.753102922646168e-6)).fma(u, Vector(6.891468111853553e-5))
        log = log.fma(u, Vector(-2.520483842983743e-4)).fma(u, Vector(-6.058255742982958e-5))
        log = log.fma(u, Vector(7.02452274208133e-3)).fma(u, Vector(-5.249550122417093e-2))
        log = log.fma(u, Vector(-0.4592029328584168)).fma(u, Vector(-1.1511061566354144))
    var tail = _power_of_two[dtype](log.fma(u, Vector(-1)))
    return (-u).fma(tail, x.lt(0).select(Vector(0), x))


@always_inline
def gelu_tanh[
    dtype: DType, width: Int
](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """Its approximation x * (1 + tanh(u)) / 2 = x * sigmoid(2 u), u a cubic of x."""
    comptime Vector = SIMD[DType.float32, width]
    comptime SLOPE = Vector(1.5957691216057308 * LOG2_E)  # 2 sqrt(2 / pi)
    return x * _logistic[dtype](x * SLOPE * (x * x).fma(Vector(0.044715), Vector(1)))


@always_inline
def swish[
    dtype: DType, beta: Float32, width: Int
](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """x * sigmoid(beta x) (Ramachandran et al., 2017)."""
    return x * _logistic[dtype](x * SIMD[DType.float32, width](beta * LOG2_E))


@always_inline
def _logistic[
    dtype: DType, width: Int
](u: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """1 / (1 + 2^-u)."""
    comptime Vector = SIMD[DType.float32, width]
    var e = power_of_two[dtype, width](-abs(u))
    return u.lt(0).select(e, Vector(1)) / (e + 1)


@always_inline
def activate[
    name: StaticString, dtype: DType, width: Int
](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """The function of that name, as passes/matching.py has it, or "none"."""
    comptime if name == "gelu":
        return gelu[dtype](x)
    elif name == "gelu_tanh":
        return gelu_tanh[dtype](x)
    elif name == "quick_gelu":
        return swish[dtype, 1.702](x)
    elif name == "silu":
        return swish[dtype, 1](x)
    elif name == "squared_relu":  # So et al., 2021
        var positive = x.lt(0).select(SIMD[DType.float32, width](0), x)  # or NaN
        return positive * positive
    else:
        comptime assert name == "none", "no such activation"
        return x
