"""The scores of a tile, (E1) by (E7) and (E9), and the place of each element.

A tile of BI queries and BJ keys is held as [RI, RJ, TI, TJ], its SHAPE: TI * TJ threads of RI * RJ
pairs each. A thread computes an RI x RJ block of scores in registers, from RI + RJ loads per hidden
unit, and needs nothing from other threads. An element takes 3.5 multiply-adds and a quarter of a
reciprocal.
"""

import triton
import triton.language as tl

from .maths import (
    EXP_QUAD,
    FACTORED,
    QUAD,
    at_most,
    exp_sum,
    is_logistic,
    pointwise,
    reciprocal,
    two,
)
from .prepare import row_ranges
from .rows import wide
from .sines import LAST, UNITS, sine_scores, tile_reach

STAGE = tl.constexpr(8)  # pairs of hidden units


@triton.jit
def _four(x, apart):
    """Return four hidden units from two words that lie `apart`."""
    x0, x1 = two(x)
    x2, x3 = two(x + apart)
    return x0, x1, x2, x3


@triton.jit
def _quads(s, a, b, w, padded, BI, BJ, BOUNDED: tl.constexpr, TARGET: tl.constexpr):
    """Add sum_t w_t (r_t - 1/2), r = 1 / (1 + a_t b_t), to s, with one reciprocal for four of them.

    Halves are taken away every STAGE pairs: sums of r would round by as much as w is large, and so
    in one direction where hidden units are alike.
    """
    for first in range(0, padded // 2, STAGE):
        sum_w = 0.0
        for pair in range(first, tl.minimum(first + STAGE, padded // 2), 2):
            a0, a1, a2, a3 = _four(a + pair * BI, BI)
            b0, b1, b2, b3 = _four(b + pair * BJ, BJ)
            w0, w1, w2, w3 = _four(w + pair, 1)
            sum_w += (w0 + w1) + (w2 + w3)
            x0 = 1.0 + a0 * b0
            x1 = 1.0 + a1 * b1
            x2 = 1.0 + a2 * b2
            x3 = 1.0 + a3 * b3
            if BOUNDED:
                x0 = at_most(x0, EXP_QUAD)
                x1 = at_most(x1, EXP_QUAD)
                x2 = at_most(x2, EXP_QUAD)
                x3 = at_most(x3, EXP_QUAD)
            d01 = x0 * x1
            d23 = x2 * x3
            numerator = (w0 * x1 + w1 * x0) * d23 + (w2 * x3 + w3 * x2) * d01
            s += numerator * reciprocal(d01 * d23, TARGET)
        s -= sum_w / 2
    return s


@triton.jit
def _direct(
    s,
    query,
    query_at,
    i,
    n,
    key,
    key_at,
    j,
    m,
    w,
    first,
    end,
    ACTIVATION: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Add sum_t w_t (r_t - 1/2), r = 1 / (1 + exp(gain * (q + k))), to s from any inputs.

    Sums of r would round by as much as w is large where q + k cancels.
    """
    i = tl.minimum(i, n - 1)  # beyond the end any row will do
    j = tl.minimum(j, m - 1)
    query_at += wide(first) * query.unit
    key_at += wide(first) * key.unit
    for t in range(first, end):
        q = tl.load(query_at + i * query.row).to(tl.float32)
        k = tl.load(key_at + j * key.row).to(tl.float32)
        s += tl.load(w + t) * (reciprocal(1.0 + exp_sum(q + k, ACTIVATION), TARGET) - 0.5)
        query_at += query.unit
        key_at += key.unit
    return s


@triton.jit
def _pointwise(s, a, b, w, padded, negative_slope, BI, BJ, ACTIVATION: tl.constexpr):
    """Add sum_t w_t f(a_t + b_t) to s."""
    for pair in range(0, padded // 2, 2):  # sums of four: fewer that round like s
        a0, a1, a2, a3 = _four(a + pair * BI, BI)
        b0, b1, b2, b3 = _four(b + pair * BJ, BJ)
        w0, w1, w2, w3 = _four(w + pair, 1)
        four = w0 * pointwise(a0 + b0, negative_slope, ACTIVATION)
        four += w1 * pointwise(a1 + b1, negative_slope, ACTIVATION)
        four += w2 * pointwise(a2 + b2, negative_slope, ACTIVATION)
        s += four + w3 * pointwise(a3 + b3, negative_slope, ACTIVATION)
    return s


@triton.jit
def places(SHAPE: tl.constexpr):
    """Return (queries [RI, 1, TI, 1], keys [1, RJ, 1, TJ]) of a tile, from 0 on."""
    RI: tl.constexpr = SHAPE[0]
    RJ: tl.constexpr = SHAPE[1]
    TI: tl.constexpr = SHAPE[2]
    TJ: tl.constexpr = SHAPE[3]
    i = (tl.arange(0, RI) * TI)[:, None, None, None] + tl.arange(0, TI)[None, None, :, None]
    j = (tl.arange(0, RJ) * TJ)[None, :, None, None] + tl.arange(0, TJ)[None, None, None, :]
    return i, j


@triton.jit
def as_matrix(x):
    """Return [RI, RJ, TI, TJ] as [BI, BJ]."""
    rows: tl.constexpr = x.shape[0] * x.shape[2]
    return tl.reshape(tl.permute(x, (0, 2, 1, 3)), (rows, x.shape[1] * x.shape[3]))


@triton.jit
def as_tile(x, SHAPE: tl.constexpr):
    """Return [BI, BJ] as [RI, RJ, TI, TJ]."""
    split = tl.reshape(x, (SHAPE[0], SHAPE[2], SHAPE[1], SHAPE[3]))
    return tl.permute(split, (0, 2, 1, 3))


@triton.jit
def score_tile(
    query,
    query_at,
    query_panels,
    query_panel,
    i0,
    n,
    key,
    key_at,
    key_panels,
    key_panel,
    j0,
    m,
    weights,
    d,
    padded,
    negative_slope,
    sines,
    ACTIVATION: tl.constexpr,
    SHAPE: tl.constexpr,
    CHUNKS: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Return float32 [RI, RJ, TI, TJ]: queries from i0 on against keys from j0 on.

    query_panel and key_panel are numbers of panels; query_at and key_at point to row 0 of the
    sequence, for `_direct`; weights points to those of the leading index. sines is the table of
    (E14), or None for exact scores.
    """
    BI: tl.constexpr = SHAPE[0] * SHAPE[2]
    BJ: tl.constexpr = SHAPE[1] * SHAPE[3]
    i, j = places(SHAPE)
    s = tl.zeros(SHAPE, tl.float32)
    if sines is not None:
        query_at += wide(i0) * query.row
        key_at += wide(j0) * key.row
        by_sines, beyond = sine_scores(
            query, query_panels, query_panel, n - i0, query_at, key, key_panels, key_panel, m - j0,
            key_at, weights, tl.load(weights + padded + 1), d, sines, ACTIVATION, BI, BJ, TARGET,
        )  # fmt: skip
        s = as_tile(by_sines, SHAPE)
        if beyond > 0:
            unit = tl.load(weights + padded + 1)
            for t0 in range(0, d, UNITS):
                reach = tile_reach(query_panels, query_panel, key_panels, key_panel, unit, t0, d)
                if reach > LAST:
                    s = _direct(
                        s, query, query_at, i, n - i0, key, key_at, j, m - j0, weights, t0,
                        tl.minimum(t0 + UNITS, d), ACTIVATION, TARGET,
                    )  # fmt: skip
    else:
        word = tl.pointer_type(tl.int64)
        a = (query_panels.data + query_panel * padded * BI).to(word) + i
        b = (key_panels.data + key_panel * padded * BJ).to(word) + j
        w = weights.to(word)
        if is_logistic(ACTIVATION):
            query_high, query_size = row_ranges(query_panels.ranges, query_panel, d, CHUNKS)
            key_high, key_size = row_ranges(key_panels.ranges, key_panel, d, CHUNKS)
            if tl.maximum(query_size, key_size) <= FACTORED:
                if tl.max(query_high + key_high) <= QUAD:
                    s = _quads(s, a, b, w, padded, BI, BJ, False, TARGET)
                else:
                    s = _quads(s, a, b, w, padded, BI, BJ, True, TARGET)
            else:
                query_at += wide(i0) * query.row
                key_at += wide(j0) * key.row
                s = _direct(
                    s, query, query_at, i, n - i0, key, key_at, j, m - j0, weights, 0, d,
                    ACTIVATION, TARGET,
                )  # fmt: skip
        else:
            s = _pointwise(s, a, b, w, padded, negative_slope, BI, BJ, ACTIVATION)
    return s * tl.load(weights + padded + 1) + tl.load(weights + padded)
