"""A few queries against many keys, as in a decoder: bound by reading every key once.

Nothing is prepared: the activation is computed from rows as they lie, with lanes over hidden units.
"""

import triton
import triton.language as tl

from .delta import MOST, ROUNDING, centred
from .mask import end_key, first_key, kept, mask_of, taking_part
from .maths import (
    activated,
    gain,
    is_logistic,
    logistic,
    pointwise_with_slope,
    row_softmax,
    span,
    weighted,
)
from .rows import ANY, end_of, matrix_of, program_index, start_of, vector_of, wide


@triton.jit
def _scores(
    query,
    query_at,
    key,
    key_at,
    weight,
    weight_at,
    j0,
    m,
    d,
    scale,
    negative_slope,
    ACTIVATION: tl.constexpr,
    BJ: tl.constexpr,
    BD: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Return float32 [BJ]: one query against the keys from j0 on, (E1)."""
    key_at += wide(j0) * key.row
    j = tl.arange(0, BJ)
    s = tl.zeros((BJ, BD), tl.float32)
    for t0 in range(0, d, BD):
        t = t0 + tl.arange(0, BD)
        there = (j < m - j0)[:, None] & (t < d)[None, :]
        q = tl.load(query_at + t.to(tl.int64) * query.unit, mask=t < d, other=0.0).to(tl.float32)
        w = tl.load(weight_at + t.to(tl.int64) * weight.unit, mask=t < d, other=0.0).to(tl.float32)
        at = j[:, None] * key.row + t[None, :] * key.unit
        k = tl.load(key_at + at, mask=there, other=0.0).to(tl.float32)
        s += w[None, :] * activated(q[None, :] + k, negative_slope, ACTIVATION, TARGET)
    return tl.sum(s, 1) * scale


@triton.jit(do_not_specialize=ANY)
def step_kernel(
    query,
    key,
    value,
    weight,
    mask,
    band,
    bounds,
    dropout,
    sizes,
    leads,
    context,
    lse,
    softmax,
    scores,
    n,
    m,
    d,
    dv,
    splits,
    scale,
    negative_slope,
    ACTIVATION: tl.constexpr,
    MASK: tl.constexpr,
    BJ: tl.constexpr,
    BD: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, query, split of keys): (E1)-(E3), as forward_kernel."""
    split, i, b = program_index(splits, n)
    start, end = start_of(b, sizes, bounds), end_of(b, sizes, bounds, m)
    begin, end = tl.maximum(first_key(band, i), start), end_key(band, i, end)
    last_tile = tl.cdiv(end, BJ)
    share = tl.cdiv(tl.maximum(last_tile - begin // BJ, 0), splits)
    first_tile = begin // BJ + split * share
    query_at = matrix_of(b, sizes, query) + wide(i) * query.row
    key_at = matrix_of(b, sizes, key)
    value_at = matrix_of(b, sizes, value)
    weight_at = vector_of(b, sizes, weight)
    mask_at = mask_of(b, sizes, mask)
    row = (wide(split) * leads + b) * n + i
    context += row * dv

    highest = -float("inf")
    total = 0.0
    started = False
    for jt in range(first_tile, tl.minimum(first_tile + share, last_tile)):
        j = jt * BJ + tl.arange(0, BJ)
        takes, added = taking_part(i, j, n, start, end, mask, mask_at, band, MASK)
        if tl.max(takes.to(tl.int32)) > 0:
            x = _scores(
                query, query_at, key, key_at, weight, weight_at, jt * BJ, end, d, scale,
                negative_slope, ACTIVATION, BJ, BD, TARGET,
            )  # fmt: skip
            x = tl.where(takes, x + added, -float("inf"))
            if scores is not None:
                tl.store(scores + (wide(b) * n + i) * m + j, x, mask=j < end)
            new = tl.maximum(highest, tl.max(x))
            finite = tl.where(new == -float("inf"), 0.0, new)
            p = tl.exp(x - finite)
            alpha = tl.exp(highest - finite)
            total = total * alpha + tl.sum(p)
            highest = new
            if dropout is not None:
                p = tl.where(kept(dropout, i, j, b), p * dropout.keep_scale, 0.0)
            for c0 in range(0, dv, BD):
                c = c0 + tl.arange(0, BD)
                at = tl.arange(0, BJ)[:, None] * value.row + c[None, :] * value.unit
                inside = ((j >= start) & (j < end))[:, None] & (c < dv)[None, :]
                u = tl.load(value_at + wide(jt * BJ) * value.row + at, mask=inside, other=0.0)
                u = u.to(tl.float32)
                old = tl.load(context + c, mask=(c < dv) & started, other=0.0)
                tl.store(context + c, old * alpha + tl.sum(p[:, None] * u, 0), mask=c < dv)
            tl.debug_barrier()  # the next tile may read a number in another thread
            started = True

    divisor = tl.where(total == 0.0, 1.0, total)
    for c0 in range(0, dv, BD):
        c = c0 + tl.arange(0, BD)
        old = tl.load(context + c, mask=(c < dv) & started, other=0.0)
        tl.store(context + c, old / divisor, mask=c < dv)
    tl.store(lse + row, highest + tl.log(total))
    tl.store(softmax + 2 * row, highest)
    tl.store(softmax + 2 * row + 1, total)


@triton.jit(do_not_specialize=ANY)
def step_gradient_kernel(
    query,
    key,
    value,
    weight,
    mask,
    band,
    bounds,
    dropout,
    sizes,
    outer,
    ds,
    used,
    n,
    m,
    d,
    dv,
    scale,
    negative_slope,
    ACTIVATION: tl.constexpr,
    MASK: tl.constexpr,
    BJ: tl.constexpr,
    BD: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, query, tile of keys): ds of (E4) and the weights after dropout, [leads, n, m]."""
    tile, i, b = program_index(tl.cdiv(m, BJ), n)
    j0 = tile * BJ
    j = j0 + tl.arange(0, BJ)
    start, end = start_of(b, sizes, bounds), end_of(b, sizes, bounds, m)
    mask_at = mask_of(b, sizes, mask)
    takes, added = taking_part(i, j, n, start, end, mask, mask_at, band, MASK)
    row = wide(b) * n + i
    at = row * m + j
    if tl.max(takes.to(tl.int32)) == 0:
        tl.store(ds + at, tl.zeros((BJ,), tl.float32), mask=j < m)
        tl.store(used + at, tl.zeros((BJ,), tl.float32), mask=j < m)
        return

    query_at = matrix_of(b, sizes, query) + wide(i) * query.row
    key_at = matrix_of(b, sizes, key)
    weight_at = vector_of(b, sizes, weight)
    x = _scores(
        query, query_at, key, key_at, weight, weight_at, j0, end, d, scale, negative_slope,
        ACTIVATION, BJ, BD, TARGET,
    )  # fmt: skip
    if outer.given is not None:
        a = tl.load(outer.given + at, mask=takes, other=0.0)
    else:
        high, share = row_softmax(outer.softmax, outer.lse, row, True)
        a = tl.where(takes, tl.exp(x + added - high) * share, 0.0)
    g = tl.zeros((BJ,), tl.float32)
    if outer.grad_context is not None:
        value_at = matrix_of(b, sizes, value) + wide(j0) * value.row
        products = tl.zeros((BJ, BD), tl.float32)
        for c0 in range(0, dv, BD):
            c = c0 + tl.arange(0, BD)
            at_u = tl.arange(0, BJ)[:, None] * value.row + c[None, :] * value.unit
            inside = (j < end)[:, None] & (c < dv)[None, :]
            u = tl.load(value_at + at_u, mask=inside, other=0.0).to(tl.float32)
            dc = tl.load(outer.grad_context + row * dv + c, mask=c < dv, other=0.0)
            products += u * dc[None, :]
        g = tl.sum(products, 1)
    if outer.grad_weights is not None:
        g += tl.load(outer.grad_weights + at, mask=takes, other=0.0)
    z = a
    if dropout is not None:
        keep = kept(dropout, i, j, b)
        z = tl.where(keep, a * dropout.keep_scale, 0.0)
        g = tl.where(keep, g * dropout.keep_scale, 0.0)
    g -= tl.load(outer.delta + row)
    if tl.max(a) > MOST:
        one = tl.arange(0, 1)
        local = tl.argmax(a, 0)
        centre = centred(
            outer, row + one, one == 0, i + one, j0 + local + one, b, dropout, value,
            matrix_of(b, sizes, value), m, dv, BD, ROUNDING,
        )  # fmt: skip
        g = tl.where(tl.arange(0, BJ) == local, centre, g)
    tl.store(ds + at, tl.where(takes, a * g, 0.0), mask=j < m)
    tl.store(used + at, z, mask=j < m)


@triton.jit(do_not_specialize=ANY)
def step_sweep_kernel(
    query,
    key,
    weight,
    band,
    bounds,
    sizes,
    leads,
    ds,
    grad_query,
    grad_key,
    grad_weight,
    n,
    m,
    d,
    parts,
    scale,
    negative_slope,
    ACTIVATION: tl.constexpr,
    BJ: tl.constexpr,
    BD: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, part of the keys, BD hidden units): (E5), (E6).

    grad_key [leads, m, d] is whole; the caller sums the parts in grad_query [parts, leads, n, d]
    and grad_weight [parts, leads, d].
    """
    column, part, b = program_index(tl.cdiv(d, BD), parts)
    t = column * BD + tl.arange(0, BD)
    inside = t < d
    start = start_of(b, sizes, bounds)
    end = end_key(band, n - 1, end_of(b, sizes, bounds, m))
    query_at = matrix_of(b, sizes, query) + t.to(tl.int64) * query.unit
    key_at = matrix_of(b, sizes, key)
    weight_at = vector_of(b, sizes, weight) + t.to(tl.int64) * weight.unit
    w = scale * tl.load(weight_at, mask=inside, other=0.0).to(tl.float32)
    place = wide(part) * leads + b
    dw = tl.zeros((BD,), tl.float32)
    for i in range(0, n):
        tl.store(grad_query + (place * n + i) * d + t, tl.zeros((BD,), tl.float32), mask=inside)
    for jt in range(part, tl.cdiv(m, BJ), parts):  # each has as many that are seen
        j = jt * BJ + tl.arange(0, BJ)
        at = j.to(tl.int64)[:, None] * key.row + t.to(tl.int64)[None, :] * key.unit
        there = ((j >= start) & (j < end))[:, None] & inside[None, :]
        k = tl.load(key_at + at, mask=there, other=0.0)
        k = k.to(tl.float32)
        dk = tl.zeros((BJ, BD), tl.float32)
        for i in range(0, n):
            q = tl.load(query_at + wide(i) * query.row, mask=inside, other=0.0).to(tl.float32)
            s = tl.load(ds + (wide(b) * n + i) * m + j, mask=j < end, other=0.0)[:, None]
            x = tl.where(s == 0, 0.0, q[None, :] + k)  # 0 adds 0 even to NaN
            if is_logistic(ACTIVATION):
                r, g = logistic(x, ACTIVATION, TARGET)
                f = 1.0 - span(ACTIVATION) * r
                g *= span(ACTIVATION) * gain(ACTIVATION)
            else:
                f, g = pointwise_with_slope(x, negative_slope, ACTIVATION)
            dk += s * g
            dw += tl.sum(s * f, 0)
            sum_at = grad_query + (place * n + i) * d + t
            dq = tl.load(sum_at, mask=inside, other=0.0) + weighted(tl.sum(s * g, 0), w)
            tl.store(sum_at, dq, mask=inside)
            tl.debug_barrier()  # the next tile may read a number in another thread
        at = (wide(b) * m + j)[:, None] * d + t[None, :]
        tl.store(grad_key + at, weighted(dk, w[None, :]), mask=(j < m)[:, None] & inside[None, :])
    tl.store(grad_weight + place * d + t, scale * dw, mask=inside)
