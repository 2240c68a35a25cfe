"""The gradients of query, key and weight as matrix products of sines, (E16) and (E17).

With y = a + b for the row a of one side and the rows b of the other, and ds of their pairs,

    sum_b ds tanh'(y) = l sum_b ds + sum_p p h c_p (cos(p h a) C_p - sin(p h a) S_p)
    sum_b ds tanh(y)  = l sum_b ds y + sum_p c_p (sin(p h a) C_p + cos(p h a) S_p)

where C_p and S_p are the sums of ds cos(p h b) and ds sin(p h b): products of ds, in 16 bits, and
the sines of the other side. Program (b, tile of rows, UNITS hidden units) goes through all tiles of
the other side, for GROUP values of p at a time. No sum is shared by programs.
"""

import triton
import triton.language as tl

from .mask import end_key, first_key, seeing_queries
from .maths import gain, logistic, weighted
from .rows import (
    ANY,
    end_of,
    extent,
    lead_index,
    matrix_of,
    program_index,
    sequence_of,
    start_of,
    vector_of,
    wide,
)
from .sines import HEAD, LAST, UNITS, half_rows, range_of, reach_of, series_of, sine_cosine

GROUP = tl.constexpr(4)  # values of p at a time


@triton.jit
def _widened(high, size, low, panels, panel, t, d):
    """Return the ranges that also hold those of a panel in the chunk of t."""
    top, most, bottom = range_of(panels, panel, t, d)
    return tl.maximum(high, top), tl.maximum(size, most), tl.minimum(low, bottom)


@triton.jit
def _turned(sine, cosine, by_sine, by_cosine):
    """Return sine and cosine of the sum of two angles, from those of each."""
    return sine * by_cosine + cosine * by_sine, cosine * by_cosine - sine * by_sine


@triton.jit
def _features(b, step, p0, TARGET: tl.constexpr):
    """Return float16 [rows, 8 * UNITS]: sine and cosine of p0 + 1, ..., p0 + GROUP times step * b.

    Columns of a hidden unit lie together; `_sums` takes them apart.
    """
    s1, c1 = sine_cosine(b * step, TARGET)
    s0, c0 = sine_cosine(b * (step * p0), TARGET)
    sa, ca = _turned(s0, c0, s1, c1)
    twice = 2.0 * c1
    sb = twice * sa - s0
    cb = twice * ca - c0
    sc = twice * sb - sa
    cc = twice * cb - ca
    sd = twice * sc - sb
    cd = twice * cc - cb
    first = tl.join(tl.join(sa, ca), tl.join(sb, cb))
    second = tl.join(tl.join(sc, cc), tl.join(sd, cd))
    return tl.reshape(tl.join(first, second), (b.shape[0], 2 * GROUP * UNITS)).to(tl.float16)


@triton.jit
def _add_group(grad, along, sums, a, step, p0, series, TARGET: tl.constexpr):
    """Add the terms of p0 + 1, ..., p0 + GROUP to the sums with tanh' and with tanh."""
    pairs = tl.reshape(sums, (a.shape[0], UNITS, 2, 2, 2))
    first, second = tl.split(pairs)
    pa, pb = tl.split(first)
    pc, pd = tl.split(second)
    s1, c1 = sine_cosine(a * step, TARGET)
    s, c = sine_cosine(a * (step * p0), TARGET)
    for g in tl.static_range(4):
        s, c = _turned(s, c, s1, c1)
        if g == 0:
            of_sine, of_cosine = tl.split(pa)
        elif g == 1:
            of_sine, of_cosine = tl.split(pb)
        elif g == 2:
            of_sine, of_cosine = tl.split(pc)
        else:
            of_sine, of_cosine = tl.split(pd)
        factor = tl.load(series + HEAD + p0 + g)
        grad += (factor * (step * (p0 + g + 1))) * (c * of_cosine - s * of_sine)
        along += factor * (s * of_cosine + c * of_sine)
    return grad, along


@triton.jit
def first_tile_of(cu_seqlens, s, ROWS: tl.constexpr):
    """Return the number of the first tile of ROWS rows of sequence s; see rows.sequence_of."""
    if cu_seqlens is None:
        return 0
    else:
        return (tl.load(cu_seqlens + s).to(tl.int64) // ROWS).to(tl.int32) + s


@triton.jit
def _block(halves, width, own, other, OF_QUERY: tl.constexpr):
    """Return [own, other] of a matrix that has a row of `width` queries per key."""
    if OF_QUERY:
        at = other.to(tl.int64)[:, None] * width + own[None, :]
        return tl.trans(tl.load(halves + at))
    else:
        return tl.load(halves + own.to(tl.int64)[:, None] * width + other[None, :])


# Windows begin and end at multiples of 16: 16 bytes of 16-bit numbers are loaded at a time.
@triton.jit(do_not_specialize=({*ANY, "first_tile", "own_tiles"} - {"window", "width"}))
def sine_sweep_kernel(
    query,
    query_panels,
    key,
    key_panels,
    key_tiles,
    weights,
    bounds,
    band,
    cu_seqlens_q,
    cu_seqlens_k,
    sequences,
    sizes,
    sines,
    ds,
    halves,
    largest,
    totals,
    grad,
    along,
    n,
    m,
    d,
    padded,
    window,
    width,
    first_tile,
    own_tiles,
    OF_QUERY: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Add the sums of a window of queries to grad, float32 [leads, n or m, d].

    Rows are OWN queries with OF_QUERY, whose sums with tanh `along` [leads, own_tiles, d] gets, and
    otherwise the keys of a panel, of which there are as many. OTHER rows of the other side are
    taken at a time; a window begins and ends at multiples of it. ds is as in sweep.py; halves are
    those numbers over the largest of their row, in 16 bits, and 0 where there is no pair. largest
    and totals, of the rows, are [leads, width] or [leads, key_tiles * BJ].
    """
    OWN_PANEL: tl.constexpr = BI if OF_QUERY else BJ
    PANEL: tl.constexpr = BJ if OF_QUERY else BI  # of the other side
    columns = tl.cdiv(d, UNITS)
    chunk, tile, b = program_index(columns, own_tiles)
    t0 = chunk * UNITS
    t = t0 + tl.arange(0, UNITS)
    out_tile = tile
    tile += first_tile
    if OF_QUERY:
        s = sequence_of(cu_seqlens_q, sequences, tile, OWN)
    else:
        s = sequence_of(cu_seqlens_k, sequences, tile, OWN)
    begin_q, rows, first_q = extent(cu_seqlens_q, s, n, BI)
    begin_k, count, first_k = extent(cu_seqlens_k, s, m, BJ)
    start, keys = start_of(b, sizes, bounds), end_of(b, sizes, bounds, count)
    last_row = window + tl.minimum(rows - window, width)
    if OF_QUERY:
        own0 = (tile - first_tile_of(cu_seqlens_q, s, OWN)) * OWN
        own_end = last_row
        own_rows = rows
        if (own0 < window) | (own0 >= last_row):
            return
        begin = tl.maximum(first_key(band, own0), start) // OTHER * OTHER
        end = end_key(band, tl.minimum(own0 + OWN, rows) - 1, keys)
        other_end = keys
    else:
        own0 = (tile - first_k) * OWN
        own_end = keys
        own_rows = keys
        if (own0 >= keys) | (own0 + OWN <= start):
            return
        begin = window
        end = last_row
        if band is not None:
            seen, seen_end = seeing_queries(band, tile - first_k, keys, rows, BJ)
            begin = tl.maximum(seen // OTHER * OTHER, window)
            end = tl.minimum(seen_end, last_row)
        begin = tl.multiple_of(begin, 16)
        other_end = end

    query_at = matrix_of(b, sizes, query) + begin_q * query.row
    key_at = matrix_of(b, sizes, key) + begin_k * key.row
    weights_at = vector_of(b, sizes, weights)
    query_panel = lead_index(b, sizes, query_panels.strides) + first_q
    key_panel = lead_index(b, sizes, key_panels.strides) + first_k
    first_row = (wide(b) * key_tiles + first_k) * BJ  # of ds
    corner = first_row * width - window
    i = own0 + tl.arange(0, OWN)
    if OF_QUERY:
        own, own_at, own_panels, own_panel = query, query_at, query_panels, query_panel
        other, other_at, other_panels, other_panel = key, key_at, key_panels, key_panel
        row_at = wide(b) * width + i - window
        out = grad + (wide(b) * n + begin_q + i)[:, None] * d + t[None, :]
    else:
        own, own_at, own_panels, own_panel = key, key_at, key_panels, key_panel
        other, other_at, other_panels, other_panel = query, query_at, query_panels, query_panel
        row_at = first_row + i
        out = grad + (wide(b) * m + begin_k + i)[:, None] * d + t[None, :]
    own_at += wide(own0) * own.row
    a = half_rows(own_at, i - own0, own.row, own_end - own0, t, own.unit, d, ACTIVATION)
    scale = tl.load(largest + row_at, mask=i < own_end, other=0.0)
    total = tl.load(totals + row_at, mask=i < own_end, other=0.0)

    high = -float("inf")
    size = 0.0
    low = float("inf")
    for row0 in range(own0, tl.minimum(own0 + OWN, own_rows), OWN_PANEL):
        high, size, low = _widened(
            high, size, low, own_panels, own_panel + row0 // OWN_PANEL, t0, d
        )
    other_high = -float("inf")
    other_low = float("inf")
    for row0 in range(begin, end, PANEL):
        other_high, size, other_low = _widened(
            other_high, size, other_low, other_panels, other_panel + row0 // PANEL, t0, d
        )
    reach = reach_of(high + other_high, low + other_low, size)
    of_tanh = tl.zeros((OWN, UNITS), tl.float32)  # sums with tanh'(y), and with tanh(y)
    with_tanh = tl.zeros((OWN, UNITS), tl.float32)
    if reach <= LAST:
        series, terms = series_of(reach, sines)
        step = tl.load(series)
        linear = tl.load(series + 1)
        # so that b + middle is as small as y, and 0 where all of them are
        middle = tl.sum(a, 0)[None, :] / tl.minimum(own_end - own0, OWN)
        along_b = tl.zeros((OWN, UNITS), tl.float32)
        for p0 in range(0, terms, GROUP):
            sums = tl.zeros((OWN, 2 * GROUP * UNITS), tl.float32)
            for other0 in range(begin, end, OTHER):
                j = other0 + tl.arange(0, OTHER)
                at = other_at + wide(other0) * other.row
                b_rows = half_rows(
                    at, j - other0, other.row, other_end - other0, t, other.unit, d, ACTIVATION
                )
                block = _block(halves + corner, width, i, j, OF_QUERY)
                sums = tl.dot(block, _features(b_rows, step, p0, TARGET), sums)
                if OF_QUERY:
                    if p0 == 0:
                        along_b = tl.dot(block, (b_rows + middle).to(tl.float16), along_b)
            of_tanh, with_tanh = _add_group(of_tanh, with_tanh, sums, a, step, p0, series, TARGET)
        of_tanh = of_tanh * scale[:, None] + linear * total[:, None]
        with_tanh = (with_tanh + linear * along_b) * scale[:, None]
        with_tanh += linear * (a - middle) * total[:, None]
    else:
        first = tl.maximum(begin, start) if OF_QUERY else begin
        for k in range(first, end):
            if OF_QUERY:
                pair_at = ds + corner + wide(k) * width + i
            else:
                pair_at = ds + corner + i.to(tl.int64) * width + k
            pair = tl.load(pair_at, mask=i < own_end, other=0.0)[:, None]
            b_row_at = other_at + wide(k) * other.row + t * other.unit
            b_row = tl.load(b_row_at, mask=t < d, other=0.0).to(tl.float32)
            y = a + (b_row * (gain(ACTIVATION) * 0.5))[None, :]
            y = tl.where(pair == 0, 0.0, y)  # 0 adds 0 even to NaN
            r, slope = logistic(y * (2.0 / gain(ACTIVATION)), ACTIVATION, TARGET)
            of_tanh += pair * (4.0 * slope)
            with_tanh += pair * (1.0 - 2.0 * r)

    factor = tl.load(weights_at + t, mask=t < d, other=0.0) * tl.load(weights_at + padded + 1)
    factor *= -0.25 * gain(ACTIVATION)
    there = (i < own_end)[:, None] & (t < d)[None, :]
    before = tl.load(out, mask=there, other=0.0)
    tl.store(out, before + weighted(of_tanh, factor[None, :]), mask=there)
    if OF_QUERY:
        to = along + (wide(b) * own_tiles + out_tile) * d + t
        so_far = tl.load(to, mask=t < d, other=0.0)
        tl.store(to, so_far + tl.sum(tl.where(there, with_tanh, 0.0), 0), mask=t < d)
