"""Scores as matrix products of sines and cosines, (E14) and (E15): what precision="fast" allows.

The sines of a tile are made in its registers, p = 1, 2, ... by the recurrence

    sin((p + 1) x) = 2 cos(x) sin(p x) - sin((p - 1) x)

and cosines likewise. They lie in [-1, 1], where 16 bits round by 2^-12. A tile of BI x BJ pairs
makes BI + BJ of them for every hidden unit and p, and tensor cores do the rest.
"""

import triton
import triton.language as tl

from .maths import FACTORED, gain
from .prepare import CHUNK, RANGES

UNITS = tl.constexpr(16)  # hidden units of a product
HEAD = tl.constexpr(2)  # numbers before the sines of a series: the step, and the line
WIDTH = tl.constexpr(28)  # numbers of a series, zeros behind its sines
LAST = tl.constexpr(20.0)  # the reaches of the table are 2, 4, ..., LAST
FEWEST = tl.constexpr(4)  # sines of the first one; each has two more than the last


@triton.jit
def sine_cosine(x, TARGET: tl.constexpr):
    """Return sin(x) and cos(x), to 2^-20 for small x, and 2^-14 for |x| up to some hundreds."""
    if TARGET == "cuda":
        sine = tl.inline_asm_elementwise(
            "sin.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
        cosine = tl.inline_asm_elementwise(
            "cos.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
        return sine, cosine
    else:
        return tl.sin(x), tl.cos(x)


@triton.jit
def series_of(reach, sines):
    """Return (pointer to the shortest series for a reach up to LAST, its number of sines)."""
    row = tl.maximum(tl.ceil(reach * 0.5) - 1.0, 0.0).to(tl.int32)
    return sines + row * WIDTH, 2 * row + FEWEST


@triton.jit
def range_of(panels, panel, t, d):
    """Return (highest, size, lowest) exponent of a panel in the chunk of t."""
    at = panels.ranges + (panel * tl.cdiv(d, CHUNK) + t // CHUNK) * RANGES
    return tl.load(at), tl.load(at + 1), tl.load(at + 2)


@triton.jit
def reach_of(high, low, size):
    """Return the largest |y| by the sums of exponents, infinite where sines must not be used."""
    return tl.where(size <= FACTORED, 0.5 * tl.maximum(high, -low), float("inf"))


@triton.jit
def half_rows(x, i, row, rows, t, unit, d, ACTIVATION: tl.constexpr):
    """Return y of (E14) of [rows i, units t], 0 beyond the ends."""
    there = (i < rows)[:, None] & (t < d)[None, :]
    y = tl.load(x + i[:, None] * row + t[None, :] * unit, mask=there, other=0.0)
    return y.to(tl.float32) * (gain(ACTIVATION) * 0.5)


@triton.jit
def side_by_side(a, b, c, d):
    """Return the columns of four tensors in turn, in 16 bits."""
    all = tl.join(tl.join(a, b), tl.join(c, d))
    return tl.reshape(all, (a.shape[0], 4 * a.shape[1])).to(tl.float16)


@triton.jit
def _by_sines(
    product, of_query, of_key, query_at, query, i, n, key_at, key, j, m, weights, t0, d, reach,
    sines, ACTIVATION: tl.constexpr, TARGET: tl.constexpr,
):  # fmt: skip
    """Add the terms of UNITS hidden units to the product and to the sums of one row or key."""
    series, count = series_of(reach, sines)
    step = tl.load(series)
    linear = tl.load(series + 1)
    t = t0 + tl.arange(0, UNITS)
    w = tl.load(weights + t, mask=t < d, other=0.0)[None, :] * -0.5
    q = half_rows(query_at, i, query.row, n, t, query.unit, d, ACTIVATION)
    k = half_rows(key_at, j, key.row, m, t, key.unit, d, ACTIVATION)
    of_query += linear * tl.sum(q * w, 1)
    of_key += linear * tl.sum(k * w, 1)
    query_sine, query_cosine = sine_cosine(q * step, TARGET)
    key_sine, key_cosine = sine_cosine(k * step, TARGET)
    query_twice = 2.0 * query_cosine
    key_twice = 2.0 * key_cosine
    # two values of p at a time, so that the recurrence moves nothing
    query_sine *= w
    query_cosine *= w
    query_sine_0 = tl.zeros_like(q)
    query_cosine_0 = tl.broadcast_to(w, q.shape)
    key_sine_0 = tl.zeros_like(k)
    key_cosine_0 = tl.full(k.shape, 1.0, tl.float32)
    for p in range(0, count, 2):
        query_sine_0 = query_twice * query_sine - query_sine_0
        query_cosine_0 = query_twice * query_cosine - query_cosine_0
        key_sine_0 = key_twice * key_sine - key_sine_0
        key_cosine_0 = key_twice * key_cosine - key_cosine_0
        c = tl.load(series + HEAD + p)
        c_0 = tl.load(series + HEAD + p + 1)
        left = side_by_side(
            query_sine * c, query_cosine * c, query_sine_0 * c_0, query_cosine_0 * c_0
        )
        right = side_by_side(key_cosine, key_sine, key_cosine_0, key_sine_0)
        product = tl.dot(left, tl.trans(right), product)
        query_sine = query_twice * query_sine_0 - query_sine
        query_cosine = query_twice * query_cosine_0 - query_cosine
        key_sine = key_twice * key_sine_0 - key_sine
        key_cosine = key_twice * key_cosine_0 - key_cosine
    return product, of_query, of_key


@triton.jit
def tile_reach(query_panels, query_panel, key_panels, key_panel, unit, t, d):
    """Return the largest |y| of the hidden units of the chunk of t in a tile."""
    query_high, query_size, query_low = range_of(query_panels, query_panel, t, d)
    key_high, key_size, key_low = range_of(key_panels, key_panel, t, d)
    size = tl.where(unit < float("inf"), tl.maximum(query_size, key_size), float("inf"))
    return reach_of(query_high + key_high, query_low + key_low, size)


@triton.jit
def sine_scores(
    query, query_panels, query_panel, n, query_at, key, key_panels, key_panel, m, key_at, weights,
    unit, d, sines, ACTIVATION: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    TARGET: tl.constexpr,
):  # fmt: skip
    """Return (float32 [BI, BJ], sum_t w'_t (r_t - 1/2), the number of products left out).

    r - 1/2 is -1/2 tanh(y); w' are the weights of prepare.py, at most 1. Hidden units with sums
    beyond the table are left out.
    """
    i = tl.arange(0, BI)
    j = tl.arange(0, BJ)
    product = tl.zeros((BI, BJ), tl.float32)
    of_query = tl.zeros((BI,), tl.float32)
    of_key = tl.zeros((BJ,), tl.float32)
    beyond = 0
    for t0 in range(0, d, UNITS):
        reach = tile_reach(query_panels, query_panel, key_panels, key_panel, unit, t0, d)
        if reach <= LAST:
            product, of_query, of_key = _by_sines(
                product, of_query, of_key, query_at, query, i, n, key_at, key, j, m, weights, t0, d,
                reach, sines, ACTIVATION, TARGET,
            )  # fmt: skip
        else:
            beyond += 1
    return product + of_query[:, None] + of_key[None, :], beyond
