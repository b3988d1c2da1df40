"""Elementary functions on vectors of float32."""

from std.memory import bitcast


@always_inline
def exponential[
    width: Int
](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """The exponential of numbers up to 0, to a unit in the last place; NaN stays NaN.

    As 2^n * e^r with |r| <= log(2) / 2, e^r by a minimax polynomial (Cody and Waite, 1980).
    """
    comptime Vector = SIMD[DType.float32, width]
    comptime LOG2_E = Vector(1.4426950408889634)
    comptime LOG_2_HIGH = Vector(0.693145751953125)
    comptime LOG_2_LOW = Vector(1.4286068203094172e-06)
    var n = (x * LOG2_E).__round__()
    var r = n.fma(-LOG_2_LOW, n.fma(-LOG_2_HIGH, x))
    var p = r.fma(Vector(1.9875691500e-4), Vector(1.3981999507e-3))
    p = p.fma(r, Vector(8.3334519073e-3))
    p = p.fma(r, Vector(4.1665795894e-2))
    p = p.fma(r, Vector(1.6666665459e-1))
    p = p.fma(r, Vector(5.0000001201e-1))
    p = p.fma(r * r, r + 1)
    var power = bitcast[DType.float32, width]((n.cast[DType.int32]() + 127) << 23)
    return x.lt(-87).select(Vector(0), p * power)


@always_inline
def gelu[width: Int](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """The product of x and the normal distribution up to x (Hendrycks and Gimpel, 2016).

    By the tail beyond |x|, which loses no digits: the normal density times a quotient of
    polynomials that was fitted to Mills' ratio on [0, 9], 8e-8 off.
    """
    comptime Vector = SIMD[DType.float32, width]
    var u = min(abs(x), Vector(20))  # where the tail is zero; infinity would give NaN
    var numerator = u.fma(Vector(0.013985314813675905), Vector(0.10610863650409322))
    numerator = numerator.fma(u, Vector(0.33770347208843504)).fma(u, Vector(0.4999999617944669))
    var denominator = u.fma(Vector(0.03507376765077618), Vector(0.26547631365242624))
    denominator = denominator.fma(u, Vector(0.8877714942510562))
    denominator = denominator.fma(u, Vector(1.4732870779559706)).fma(u, Vector(1))
    var tail = exponential(u * u * -0.5) * numerator / denominator
    return x.lt(0).select(x * tail, x - u * tail)


@always_inline
def gelu_tanh[width: Int](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """Its approximation x * (1 + tanh(u)) / 2 = x * sigmoid(2 u), u a cubic of x."""
    comptime Vector = SIMD[DType.float32, width]
    comptime SLOPE = Vector(1.5957691216057308)  # 2 sqrt(2 / pi)
    var u = x * SLOPE * (x * x).fma(Vector(0.044715), Vector(1))
    var e = exponential(-abs(u))
    return x * x.lt(0).select(e, Vector(1)) / (e + 1)


@always_inline
def activate[
    name: StaticString, width: Int
](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """The function of that name: "none", "gelu" or "gelu_tanh"."""
    comptime if name == "gelu":
        return gelu(x)
    elif name == "gelu_tanh":
        return gelu_tanh(x)
    else:
        comptime assert name == "none", "no such activation"
        return x
