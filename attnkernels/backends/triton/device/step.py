"""A few queries against many keys, as in a decoder: bound by reading every key once.

Nothing is prepared: the activation itself, from rows as they lie, with lanes over hidden units.
"""

import triton
import triton.language as tl

from .mask import NONE, kept, taking_part
from .maths import (
    exp_sum,
    gain,
    is_logistic,
    pointwise,
    pointwise_slope,
    reciprocal,
    span,
)
from .rows import ANY, lead_index, lead_offset, wide


@triton.jit
def _activation(x, negative_slope, ACTIVATION: tl.constexpr, TARGET: tl.constexpr):
    """f of (E1)."""
    if is_logistic(ACTIVATION):
        return 1.0 - span(ACTIVATION) * reciprocal(1.0 + exp_sum(x, ACTIVATION), TARGET)
    else:
        return pointwise(x, negative_slope, ACTIVATION)


@triton.jit
def _scores(
    query,
    query_unit,
    key,
    key_row,
    key_unit,
    weight,
    weight_unit,
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
    """float32 [BJ]: one query against the keys from j0 on, (E1)."""
    key += wide(j0) * key_row
    j = tl.arange(0, BJ)
    s = tl.zeros((BJ, BD), tl.float32)
    for t0 in range(0, d, BD):
        t = t0 + tl.arange(0, BD)
        there = (j < m - j0)[:, None] & (t < d)[None, :]
        q = tl.load(query + t.to(tl.int64) * query_unit, mask=t < d, other=0.0).to(tl.float32)
        w = tl.load(weight + t.to(tl.int64) * weight_unit, mask=t < d, other=0.0).to(tl.float32)
        at = j[:, None] * key_row + t[None, :] * key_unit
        k = tl.load(key + at, mask=there, other=0.0).to(tl.float32)
        s += w[None, :] * _activation(q[None, :] + k, negative_slope, ACTIVATION, TARGET)
    return tl.sum(s, 1) * scale


@triton.jit(do_not_specialize=ANY)
def step_kernel(
    query,
    query_strides,
    query_row,
    query_unit,
    key,
    key_strides,
    key_row,
    key_unit,
    value,
    value_strides,
    value_row,
    value_unit,
    weight,
    weight_strides,
    weight_unit,
    mask,
    mask_strides,
    mask_row,
    mask_column,
    lengths,
    length_strides,
    seed,
    threshold,
    keep_scale,
    sizes,
    leads,
    context,
    lse,
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
    CAUSAL: tl.constexpr,
    LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr,
    SCORES: tl.constexpr,
    BJ: tl.constexpr,
    BD: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, query, split of keys): (E1)-(E3), as forward_kernel."""
    pid = tl.program_id(0)
    split = pid % splits
    i = pid // splits % n
    b = pid // splits // n
    end = m
    if LENGTHS:
        end = tl.load(lengths + lead_index(b, sizes, length_strides)).to(tl.int32)
    if CAUSAL:
        end = tl.minimum(end, i + 1)
    tiles = tl.cdiv(end, BJ)
    share = tl.cdiv(tiles, splits)
    query += lead_offset(b, sizes, query_strides) + wide(i) * query_row
    key += lead_offset(b, sizes, key_strides)
    value += lead_offset(b, sizes, value_strides)
    weight += lead_index(b, sizes, weight_strides)
    if MASK != NONE:
        mask += lead_index(b, sizes, mask_strides)
    row = (wide(split) * leads + b) * n + i
    context += row * dv

    highest = -float("inf")
    total = 0.0
    started = False
    for jt in range(split * share, tl.minimum((split + 1) * share, tiles)):
        j = jt * BJ + tl.arange(0, BJ)
        takes, added = taking_part(i, j, n, end, mask, mask_row, mask_column, CAUSAL, MASK)
        if tl.max(takes.to(tl.int32)) > 0:
            x = _scores(
                query,
                query_unit,
                key,
                key_row,
                key_unit,
                weight,
                weight_unit,
                jt * BJ,
                end,
                d,
                scale,
                negative_slope,
                ACTIVATION,
                BJ,
                BD,
                TARGET,
            )
            x = tl.where(takes, x + added, -float("inf"))
            if SCORES:
                tl.store(scores + (wide(b) * n + i) * m + j, x, mask=j < end)
            new = tl.maximum(highest, tl.max(x))
            finite = tl.where(new == -float("inf"), 0.0, new)
            p = tl.exp(x - finite)
            alpha = tl.exp(highest - finite)
            total = total * alpha + tl.sum(p)
            highest = new
            if DROPOUT:
                keep = kept(seed, i, j, b, threshold)
                p = tl.where(keep, p * keep_scale, 0.0)
            for c0 in range(0, dv, BD):
                c = c0 + tl.arange(0, BD)
                at = tl.arange(0, BJ)[:, None] * value_row + c[None, :] * value_unit
                inside = (j < end)[:, None] & (c < dv)[None, :]
                u = tl.load(value + wide(jt * BJ) * value_row + at, mask=inside, other=0.0).to(
                    tl.float32
                )
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


@triton.jit(do_not_specialize=ANY)
def step_gradient_kernel(
    query,
    query_strides,
    query_row,
    query_unit,
    key,
    key_strides,
    key_row,
    key_unit,
    value,
    value_strides,
    value_row,
    value_unit,
    weight,
    weight_strides,
    weight_unit,
    mask,
    mask_strides,
    mask_row,
    mask_column,
    lengths,
    length_strides,
    seed,
    threshold,
    keep_scale,
    sizes,
    lse,
    delta,
    grad_context,
    grad_weights,
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
    CAUSAL: tl.constexpr,
    LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr,
    CONTEXT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BJ: tl.constexpr,
    BD: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, query, tile of keys): ds of (E4) and the weights after dropout, [leads, n, m]."""
    tiles = tl.cdiv(m, BJ)
    pid = tl.program_id(0)
    j0 = pid % tiles * BJ
    j = j0 + tl.arange(0, BJ)
    i = pid // tiles % n
    b = pid // tiles // n
    end = m
    if LENGTHS:
        end = tl.load(lengths + lead_index(b, sizes, length_strides)).to(tl.int32)
    if MASK != NONE:
        mask += lead_index(b, sizes, mask_strides)
    takes, added = taking_part(i, j, n, end, mask, mask_row, mask_column, CAUSAL, MASK)
    row = wide(b) * n + i
    at = row * m + j
    if tl.max(takes.to(tl.int32)) == 0:
        tl.store(ds + at, tl.zeros((BJ,), tl.float32), mask=j < m)
        tl.store(used + at, tl.zeros((BJ,), tl.float32), mask=j < m)
        return

    x = _scores(
        query + lead_offset(b, sizes, query_strides) + wide(i) * query_row,
        query_unit,
        key + lead_offset(b, sizes, key_strides),
        key_row,
        key_unit,
        weight + lead_index(b, sizes, weight_strides),
        weight_unit,
        j0,
        end,
        d,
        scale,
        negative_slope,
        ACTIVATION,
        BJ,
        BD,
        TARGET,
    )
    a = tl.where(takes, tl.exp(x + added - tl.load(lse + row)), 0.0)
    g = tl.zeros((BJ,), tl.float32)
    if CONTEXT:
        value += lead_offset(b, sizes, value_strides) + wide(j0) * value_row
        products = tl.zeros((BJ, BD), tl.float32)
        for c0 in range(0, dv, BD):
            c = c0 + tl.arange(0, BD)
            at_u = tl.arange(0, BJ)[:, None] * value_row + c[None, :] * value_unit
            inside = (j < end)[:, None] & (c < dv)[None, :]
            u = tl.load(value + at_u, mask=inside, other=0.0).to(tl.float32)
            products += u * tl.load(grad_context + row * dv + c, mask=c < dv, other=0.0)[None, :]
        g = tl.sum(products, 1)
    if WEIGHTS:
        g += tl.load(grad_weights + at, mask=takes, other=0.0)
    z = a
    if DROPOUT:
        keep = kept(seed, i, j, b, threshold)
        z = tl.where(keep, a * keep_scale, 0.0)
        g = tl.where(keep, g * keep_scale, 0.0)
    tl.store(ds + at, tl.where(takes, a * (g - tl.load(delta + row)), 0.0), mask=j < m)
    tl.store(used + at, z, mask=j < m)


@triton.jit(do_not_specialize=ANY)
def step_sweep_kernel(
    query,
    query_strides,
    query_row,
    query_unit,
    key,
    key_strides,
    key_row,
    key_unit,
    weight,
    weight_strides,
    weight_unit,
    lengths,
    length_strides,
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
    LENGTHS: tl.constexpr,
    BJ: tl.constexpr,
    BD: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, part of the keys, BD hidden units): (E5), (E6).

    grad_key [leads, m, d] is whole; grad_query [parts, leads, n, d] and grad_weight [parts, leads,
    d] are parts to be summed.
    """
    columns = tl.cdiv(d, BD)
    pid = tl.program_id(0)
    t = pid % columns * BD + tl.arange(0, BD)
    part = pid // columns % parts
    b = pid // columns // parts
    inside = t < d
    end = m
    if LENGTHS:
        end = tl.load(lengths + lead_index(b, sizes, length_strides)).to(tl.int32)
    query += lead_offset(b, sizes, query_strides) + t.to(tl.int64) * query_unit
    key += lead_offset(b, sizes, key_strides)
    weight += lead_index(b, sizes, weight_strides)
    w = scale * tl.load(weight + t.to(tl.int64) * weight_unit, mask=inside, other=0.0).to(
        tl.float32
    )
    place = wide(part) * leads + b
    dw = tl.zeros((BD,), tl.float32)
    share = tl.cdiv(tl.cdiv(m, BJ), parts)
    for i in range(0, n):
        tl.store(grad_query + (place * n + i) * d + t, tl.zeros((BD,), tl.float32), mask=inside)
    for jt in range(part * share, tl.minimum((part + 1) * share, tl.cdiv(m, BJ))):
        j = jt * BJ + tl.arange(0, BJ)
        at = j.to(tl.int64)[:, None] * key_row + t.to(tl.int64)[None, :] * key_unit
        k = tl.load(key + at, mask=(j < end)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        dk = tl.zeros((BJ, BD), tl.float32)
        for i in range(0, n):
            q = tl.load(query + wide(i) * query_row, mask=inside, other=0.0).to(tl.float32)
            x = q[None, :] + k
            s = tl.load(ds + (wide(b) * n + i) * m + j, mask=j < end, other=0.0)[:, None]
            if is_logistic(ACTIVATION):
                r = reciprocal(1.0 + exp_sum(x, ACTIVATION), TARGET)
                f = 1.0 - span(ACTIVATION) * r
                g = span(ACTIVATION) * gain(ACTIVATION) * (r - r * r)
            else:
                f = pointwise(x, negative_slope, ACTIVATION)
                g = pointwise_slope(x, negative_slope, ACTIVATION)
            dk += s * g
            dw += tl.sum(s * f, 0)
            sum_at = grad_query + (place * n + i) * d + t
            dq = tl.load(sum_at, mask=inside, other=0.0) + w * tl.sum(s * g, 0)
            tl.store(sum_at, dq, mask=inside)
            tl.debug_barrier()  # the next tile may read a number in another thread
        at = (wide(b) * m + j)[:, None] * d + t[None, :]
        tl.store(grad_key + at, dk * w[None, :], mask=(j < m)[:, None] & inside[None, :])
    tl.store(grad_weight + place * d + t, scale * dw, mask=inside)
