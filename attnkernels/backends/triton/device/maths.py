"""Arithmetic of one element: exponentials, reciprocals, activations."""

import triton
import triton.language as tl

# ACTIVATION of a kernel is a code of attnkernels.ops.autograd.ACTIVATIONS. tanh and sigmoid are
# f(x) = 1 - span * r with r = 1 / (1 + exp(gain * x)), (E7): one kernel serves both.
TANH = tl.constexpr(0)
SIGMOID = tl.constexpr(1)
RELU = tl.constexpr(2)

# How far exponents y = gain * x may go, docs/math.md, "Ranges": four factors 1 + exp(y) multiply to
# a finite product while y <= QUAD, two while y <= PAIR; exp(y) alone is a normal number while
# |y| <= FACTORED.
QUAD = tl.constexpr(22.0)
EXP_QUAD = tl.constexpr(3.5849128e9)
PAIR = tl.constexpr(44.0)
FACTORED = tl.constexpr(86.0)

# log2(e), and what float32 leaves of it
_LOG2E = tl.constexpr(1.44269502162933349609375)
_LOG2E_LOW = tl.constexpr(1.925963033500011e-08)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def gain(ACTIVATION: tl.constexpr):
    """2 for tanh; 1 where there is none, which changes nothing."""
    if ACTIVATION == TANH:
        return 2.0
    else:
        return 1.0


@triton.jit
def exp(y):
    """exp(y) to a few units in the last place for any y: the hardware's 2^h, and what h lost."""
    h = y * _LOG2E
    low = tl.fma(y, _LOG2E_LOW, tl.fma(y, _LOG2E, -h))
    e = tl.exp2(h)
    return tl.fma(e, low * _LN2, e)


@triton.jit
def exp_sum(x, ACTIVATION: tl.constexpr):
    """exp(gain * x) for x = q + k of any size: 0 and infinity are right answers here."""
    return tl.exp2(x * (gain(ACTIVATION) * _LOG2E))


@triton.jit
def reciprocal(x, TARGET: tl.constexpr):
    """1 / x to one unit in the last place, in one instruction; 0 where x is 2^126 or more."""
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
    """min(x, limit), and NaN for NaN."""
    return tl.minimum(x, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def rectified(x, slope, ACTIVATION: tl.constexpr):
    """relu or leaky relu."""
    if ACTIVATION == RELU:
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        return tl.where(x > 0, x, x * slope)


@triton.jit
def rectified_slope(x, slope):
    """The derivative of `rectified`; the slope of relu is 0."""
    return tl.where(x > 0, 1.0, tl.where(x == x, slope, x))


@triton.jit
def two(pointer):
    """Two neighbouring float32, loaded as the one 64-bit number that `pointer` is at."""
    word = tl.load(pointer)
    first = (word & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
    second = (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return first, second
