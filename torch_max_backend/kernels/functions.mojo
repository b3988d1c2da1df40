"""Elementary functions on vectors of float32, as exact as ``dtype`` numbers need them."""

from std.memory import bitcast
from std.sys import CompilationTarget, llvm_intrinsic

comptime LOG2_E = Float32(1.4426950408889634)


@always_inline
def power_of_two[
    dtype: DType, width: Int
](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """2^x for numbers up to 127, 0 below 2^-126; NaN stays NaN.

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
    return x.lt(-126).select(Vector(0), _scaled(p.fma(r, Vector(1)), n))


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

    By the tail beyond |x|, which loses no digits: the normal density times a quotient of
    polynomials that was fitted to Mills' ratio on [0, 9], 8e-8 off, for bfloat16 1.5e-5.
    """
    comptime Vector = SIMD[DType.float32, width]
    var u = min(abs(x), Vector(20))  # where the tail is zero; infinity would give NaN
    var numerator: Vector
    var denominator: Vector
    comptime if dtype == DType.bfloat16:
        numerator = u.fma(Vector(0.05802543412470924), Vector(0.2672931670098304))
        numerator = numerator.fma(u, Vector(0.5000070730447927))
        denominator = u.fma(Vector(0.14514161876535384), Vector(0.6770848933464132))
        denominator = denominator.fma(u, Vector(1.332940908078294))
    else:
        numerator = u.fma(Vector(0.013985314813675905), Vector(0.10610863650409322))
        numerator = numerator.fma(u, Vector(0.33770347208843504)).fma(u, Vector(0.4999999617944669))
        denominator = u.fma(Vector(0.03507376765077618), Vector(0.26547631365242624))
        denominator = denominator.fma(u, Vector(0.8877714942510562))
        denominator = denominator.fma(u, Vector(1.4732870779559706))
    var density = power_of_two[dtype, width](u * u * Vector(-0.5 * LOG2_E))
    var tail = density * numerator / denominator.fma(u, Vector(1))
    return x.lt(0).select(x * tail, x - u * tail)


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
    else:
        comptime assert name == "none", "no such activation"
        return x
