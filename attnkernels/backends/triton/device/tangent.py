"""The scores of a tile and their tangents.

    s  = base + sum_t w_t f_t
    s' = base' + sum_t w'_t f_t + (w_t df_t) (q'_t + k'_t)

A dash is a tangent. For a logistic activation f is r - 1/2 with r of (E7), and dr = (r^2 - r) dy
for its exponent y = gain (q + k). The panels of tangents (prepare.py) hold gain x'. An element
takes 7 instructions, one of them a reciprocal, which bounds it: (E9) does not give the single r
that a tangent needs.
"""

import triton
import triton.language as tl

from .maths import FACTORED, is_logistic, logistic, pointwise_with_slope, reciprocal, two
from .prepare import row_ranges
from .rows import wide
from .score import STAGE, places


@triton.jit
def _add_unit(s, tangent, f, slope, x_tangent, w, w_tangent):
    """Add one hidden unit; x_tangent includes the factor w."""
    return s + w * f, tangent + slope * x_tangent + w_tangent * f


@triton.jit
def _value_with_slope(a, b, negative_slope, ACTIVATION: tl.constexpr, TARGET: tl.constexpr):
    """Return (f, f') of the numbers in panels."""
    if is_logistic(ACTIVATION):
        r = reciprocal(1.0 + a * b, TARGET)
        return r, r * r - r
    else:
        return pointwise_with_slope(a + b, negative_slope, ACTIVATION)


@triton.jit
def _panels(
    s,
    tangent,
    a,
    b,
    w,
    a_tangent,
    b_tangent,
    w_tangent,
    unit,
    unit_tangent,
    padded,
    negative_slope,
    BI,
    BJ,
    ACTIVATION: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Add all hidden units from the panels; halves are taken away as by _quads()."""
    for first in range(0, padded // 2, STAGE):
        sum_w = 0.0
        sum_dw = 0.0
        for pair in range(first, tl.minimum(first + STAGE, padded // 2)):
            a0, a1 = two(a + pair * BI)
            b0, b1 = two(b + pair * BJ)
            da0, da1 = two(a_tangent + pair * BI)
            db0, db1 = two(b_tangent + pair * BJ)
            w0, w1 = two(w + pair)
            dw0, dw1 = two(w_tangent + pair)
            w0 *= unit
            w1 *= unit
            dw0 *= unit_tangent
            dw1 *= unit_tangent
            sum_w += w0 + w1
            sum_dw += dw0 + dw1
            f, slope = _value_with_slope(a0, b0, negative_slope, ACTIVATION, TARGET)
            s, tangent = _add_unit(s, tangent, f, slope, da0 * w0 + db0 * w0, w0, dw0)
            f, slope = _value_with_slope(a1, b1, negative_slope, ACTIVATION, TARGET)
            s, tangent = _add_unit(s, tangent, f, slope, da1 * w1 + db1 * w1, w1, dw1)
        if is_logistic(ACTIVATION):
            s -= sum_w / 2
            tangent -= sum_dw / 2
    return s, tangent


@triton.jit
def _direct(
    s,
    tangent,
    query,
    query_at,
    i,
    n,
    key,
    key_at,
    j,
    m,
    w,
    a_tangent,
    b_tangent,
    w_tangent,
    unit,
    unit_tangent,
    d,
    BI,
    BJ,
    ACTIVATION: tl.constexpr,
    TARGET: tl.constexpr,
):
    """The same from the inputs, right for any of them; the tangents come from their panels."""
    near_i = tl.minimum(i, n - 1)  # beyond the end any row will do
    near_j = tl.minimum(j, m - 1)
    for t in range(0, d):
        q = tl.load(query_at + near_i * query.row).to(tl.float32)
        k = tl.load(key_at + near_j * key.row).to(tl.float32)
        r, slope = logistic(q + k, ACTIVATION, TARGET)
        da = tl.load(a_tangent + (t // 2 * BI + i) * 2 + t % 2)
        db = tl.load(b_tangent + (t // 2 * BJ + j) * 2 + t % 2)
        wt = tl.load(w + t) * unit
        s, tangent = _add_unit(
            s,
            tangent,
            r - 0.5,
            -slope,
            da * wt + db * wt,
            wt,
            tl.load(w_tangent + t) * unit_tangent,
        )
        query_at += query.unit
        key_at += key.unit
    return s, tangent


@triton.jit
def tangent_tile(
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
    tangents,
    tangent_query_panel,
    tangent_key_panel,
    tangent_weights,
    d,
    padded,
    negative_slope,
    ACTIVATION: tl.constexpr,
    SHAPE: tl.constexpr,
    CHUNKS: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Return float32 [RI, RJ, TI, TJ] twice: scores, and their tangents; see score_tile()."""
    BI: tl.constexpr = SHAPE[0] * SHAPE[2]
    BJ: tl.constexpr = SHAPE[1] * SHAPE[3]
    i, j = places(SHAPE)
    word = tl.pointer_type(tl.int64)
    a = query_panels.data + query_panel * padded * BI
    b = key_panels.data + key_panel * padded * BJ
    a_tangent = tangents.query_panels.data + tangent_query_panel * padded * BI
    b_tangent = tangents.key_panels.data + tangent_key_panel * padded * BJ
    unit = tl.load(weights + padded + 1)
    unit_tangent = tl.load(tangent_weights + padded + 1)
    s = tl.zeros(SHAPE, tl.float32) + tl.load(weights + padded)
    tangent = tl.zeros(SHAPE, tl.float32) + tl.load(tangent_weights + padded)
    factored = True
    if is_logistic(ACTIVATION):
        _, query_size = row_ranges(query_panels.ranges, query_panel, d, CHUNKS)
        _, key_size = row_ranges(key_panels.ranges, key_panel, d, CHUNKS)
        factored = tl.maximum(query_size, key_size) <= FACTORED
    if factored:
        s, tangent = _panels(
            s, tangent, a.to(word) + i, b.to(word) + j, weights.to(word), a_tangent.to(word) + i,
            b_tangent.to(word) + j, tangent_weights.to(word), unit, unit_tangent, padded,
            negative_slope, BI, BJ, ACTIVATION, TARGET,
        )  # fmt: skip
    else:
        s, tangent = _direct(
            s, tangent, query, query_at + wide(i0) * query.row, i, n - i0, key,
            key_at + wide(j0) * key.row, j, m - j0, weights, a_tangent, b_tangent, tangent_weights,
            unit, unit_tangent, d, BI, BJ, ACTIVATION, TARGET,
        )  # fmt: skip
    return s, tangent
