"""Arithmetic of one element: exponentials, reciprocals, activations."""

import triton
import triton.language as tl

from ....ops import codes

# The argument ACTIVATION of a kernel is a code of this table; an unknown one raises when the kernel
# is compiled. Globals are constexpr, so changing them recompiles the kernels.
_TABLE = tl.constexpr({f.code: f for f in codes.ACTIVATIONS.values()})
RELU = tl.constexpr(codes.ACTIVATIONS["relu"].code)
LEAKY_RELU = tl.constexpr(codes.ACTIVATIONS["leaky_relu"].code)

# Limits of exponents y = gain * x: docs/math.md, "Ranges".
QUAD = tl.constexpr(codes.QUAD)
EXP_QUAD = tl.constexpr(codes.EXP_QUAD)
PAIR = tl.constexpr(codes.PAIR)
FACTORED = tl.constexpr(codes.FACTORED)

# log2(e), and its rounding error in float32
_LOG2E = tl.constexpr(1.44269502162933349609375)
_LOG2E_LOW = tl.constexpr(1.925963033500011e-08)
_LN2 = tl.constexpr(0.6931471805599453)
_HUGE = tl.constexpr(2.0**126)  # its reciprocal counts as 0


@triton.constexpr_function
def is_logistic(activation):
    """Return True for f(x) = 1 - span * r with r = 1 / (1 + exp(gain * x)), (E7)."""
    assert activation in _TABLE.value, "unknown activation"
    return _TABLE.value[activation].family == "logistic"


@triton.constexpr_function
def gain(activation):
    """Return the gain of a logistic activation, and 1 for a pointwise one."""
    return _TABLE.value[activation].gain


@triton.constexpr_function
def span(activation):
    """Return the span of a logistic activation, and 1 for a pointwise one."""
    return _TABLE.value[activation].span


@triton.jit
def exp(y):
    """Return exp(y) to a few units in the last place: 2^h, corrected for the rounding of h."""
    h = y * _LOG2E
    low = tl.fma(y, _LOG2E_LOW, tl.fma(y, _LOG2E, -h))
    e = tl.exp2(h)
    return tl.fma(e, low * _LN2, e)


@triton.jit
def row_softmax(softmax, lse, row, there):
    """Return (high, share) with which the weights of rows are exp(s - high) * share.

    They are not exp(s - lse): lse is rounded, by as much as it is large.
    """
    if softmax is not None:
        high = tl.load(softmax + 2 * row, mask=there, other=0.0)
        total = tl.load(softmax + 2 * row + 1, mask=there, other=0.0)
        share = tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total))
    else:
        high = tl.load(lse + row, mask=there, other=0.0)
        share = tl.where(high == -float("inf"), 0.0, 1.0)
    return tl.where(high == -float("inf"), 0.0, high), share


@triton.jit
def exp_sum(x, ACTIVATION: tl.constexpr):
    """Return exp(gain * x) for any x = q + k; it may be 0 or infinite."""
    return tl.exp2(x * (gain(ACTIVATION) * _LOG2E))


@triton.jit
def reciprocal(x, TARGET: tl.constexpr):
    """Return 1 / x to one unit in the last place, in one instruction; 0 from x = 2^126 on."""
    if TARGET == "cuda":
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    elif TARGET == "hip":
        return tl.inline_asm_elementwise(
            "v_rcp_f32 $0, $1", "=v,v", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def at_most(x, limit: tl.constexpr):
    """Return min(x, limit), and NaN for NaN."""
    return tl.minimum(x, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def logistic(x, ACTIVATION: tl.constexpr, TARGET: tl.constexpr):
    """Return r = 1 / (1 + exp(gain * x)) of (E7), and r (1 - r) of (E8).

    r - r^2 would be off by the rounding of r, which is all that is left of it near r = 1.
    """
    e = at_most(exp_sum(x, ACTIVATION), _HUGE)
    r = reciprocal(1.0 + e, TARGET)
    return r, e * r * r


@triton.jit
def pointwise(x, negative_slope, ACTIVATION: tl.constexpr):
    """Return f(x) of a pointwise activation: NaN for NaN, and a finite f(0), which pads tiles."""
    if ACTIVATION == RELU:
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == LEAKY_RELU:
        return tl.where(x > 0, x, x * negative_slope)
    else:
        tl.static_assert(False, "a pointwise activation without its value")


@triton.jit
def pointwise_slope(x, negative_slope, ACTIVATION: tl.constexpr):
    """Return f'(x) of a pointwise activation: NaN for NaN."""
    if ACTIVATION == RELU:
        return tl.where(x > 0, 1.0, tl.where(x == x, 0.0, x))
    elif ACTIVATION == LEAKY_RELU:
        return tl.where(x > 0, 1.0, tl.where(x == x, negative_slope, x))
    else:
        tl.static_assert(False, "a pointwise activation without its slope")


@triton.jit
def pointwise_with_slope(x, negative_slope, ACTIVATION: tl.constexpr):
    """Return (f(x), f'(x)) of a pointwise activation."""
    return pointwise(x, negative_slope, ACTIVATION), pointwise_slope(x, negative_slope, ACTIVATION)


@triton.jit
def slope_below(negative_slope, ACTIVATION: tl.constexpr):
    """Return f'(x) of a pointwise activation for x <= 0; it is 1 above."""
    if ACTIVATION == RELU:
        return 0.0
    else:
        tl.static_assert(ACTIVATION == LEAKY_RELU, "a pointwise activation without its slope")
        return negative_slope


@triton.jit
def activated(x, negative_slope, ACTIVATION: tl.constexpr, TARGET: tl.constexpr):
    """Return f(x) of (E1)."""
    if is_logistic(ACTIVATION):
        return 1.0 - span(ACTIVATION) * reciprocal(1.0 + exp_sum(x, ACTIVATION), TARGET)
    else:
        return pointwise(x, negative_slope, ACTIVATION)


@triton.jit
def activated_with_slope(x, negative_slope, ACTIVATION: tl.constexpr, TARGET: tl.constexpr):
    """Return (f(x), f'(x)) of (E1), where a NaN need not reach f'."""
    if is_logistic(ACTIVATION):
        r, slope = logistic(x, ACTIVATION, TARGET)
        return 1.0 - span(ACTIVATION) * r, span(ACTIVATION) * gain(ACTIVATION) * slope
    else:
        slope = tl.where(x > 0, 1.0, slope_below(negative_slope, ACTIVATION))
        return pointwise(x, negative_slope, ACTIVATION), slope


@triton.jit
def weighted(x, w):
    """Return x * w, and 0 for 0, even if w is not finite: for what no pair has added to."""
    return tl.where(x == 0, 0.0, x * w)


@triton.jit
def two(pointer):
    """Return two neighbouring float32, loaded as the 64-bit number at `pointer`."""
    word = tl.load(pointer)
    first = (word & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
    second = (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return first, second
