"""The forward with the tangents of its outputs, in one pass like that of forward.py.

With a dash for a tangent, P the softmax after dropout, and u the values,

    lse'_i = sum_j a_ij s'_ij       c'_i = sum_j P_ij (s'_ij - lse'_i) u_j + P_ij u'_j
    a'_ij  = a_ij (s'_ij - lse'_i), after dropout

Tangents count from that of the row's highest score so far, its origin, so that sums do not cancel:
a row with one key has tangents of exactly 0, but for those of its value and of lse. One kernel
serves every n: a decoder step fills one row of a tile. tangent.py says what bounds it.
"""

import triton
import triton.language as tl

from .mask import NONE, any_takes_part, end_key, first_key, kept, mask_of, taking_part
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
from .score import as_matrix, places
from .tangent import tangent_tile


@triton.jit
def _columns(at, unit, c, dv, inside):
    """Load float32 [BJ, BV], columns c of rows at `at`."""
    return tl.load(at + c[None, :] * unit, mask=inside[:, None] & (c < dv)[None, :], other=0.0).to(
        tl.float32
    )


@triton.jit
def _add_values(
    context,
    tangent,
    p,
    p_tangent,
    alpha,
    shift,
    started,
    there,
    value,
    value_at,
    value_tangent,
    value_tangent_at,
    start,
    m,
    dv,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Update both contexts by keys start to m of a tile, or set them until `started`.

    Offsets inside a tile have 32 bits to save registers.
    """
    i = tl.arange(0, p.shape[0])
    j = tl.arange(0, p.shape[1])
    seen = (j >= start) & (j < m)
    for c0 in range(0, dv, BV):
        c = c0 + tl.arange(0, BV)
        at = i[:, None] * dv + c[None, :]
        inside = there[:, None] & (c < dv)[None, :]
        old = tl.load(context + at, mask=inside & started, other=0.0)
        moved = tl.load(tangent + at, mask=inside & started, other=0.0) + shift[:, None] * old
        u = _columns(value_at + j[:, None] * value.row, value.unit, c, dv, seen)
        moved = tl.dot(p_tangent, u, input_precision=PRECISION) + moved * alpha[:, None]
        new = tl.dot(p, u, input_precision=PRECISION) + old * alpha[:, None]
        if value_tangent is not None:
            rows = value_tangent_at + j[:, None] * value_tangent.row
            du = _columns(rows, value_tangent.unit, c, dv, seen)
            moved = tl.dot(p, du, moved, input_precision=PRECISION)
        tl.store(tangent + at, moved, mask=inside)
        tl.store(context + at, new, mask=inside)
    tl.debug_barrier()  # the next tile may read a number in another thread


@triton.jit(do_not_specialize=ANY)
def jvp_kernel(
    query,
    query_panels,
    query_tiles,
    key,
    key_panels,
    value,
    weights,
    mask,
    band,
    tangents,
    bounds,
    cu_seqlens_q,
    cu_seqlens_k,
    sequences,
    dropout,
    sizes,
    leads,
    context,
    lse,
    scores,
    context_tangent,
    lse_tangent,
    scores_tangent,
    n,
    m,
    d,
    padded,
    dv,
    splits,
    negative_slope,
    ACTIVATION: tl.constexpr,
    MASK: tl.constexpr,
    SHAPE: tl.constexpr,
    BV: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, tile of queries, split of keys). Every b has n queries and m keys in all."""
    BI: tl.constexpr = SHAPE[0] * SHAPE[2]
    BJ: tl.constexpr = SHAPE[1] * SHAPE[3]
    split, tile, b = program_index(splits, query_tiles)
    s = sequence_of(cu_seqlens_q, sequences, tile, BI)
    begin_q, rows, first_q = extent(cu_seqlens_q, s, n, BI)
    begin_k, columns, first_k = extent(cu_seqlens_k, s, m, BJ)
    i0 = (tile - first_q) * BI
    if i0 >= rows:
        return
    start, columns = start_of(b, sizes, bounds), end_of(b, sizes, bounds, columns)
    tile_i, tile_j = places(SHAPE)
    i = i0 + tile_i
    row_i = i0 + tl.arange(0, BI)
    there = row_i < rows
    begin = tl.maximum(first_key(band, i0), start)
    last_tile = tl.cdiv(end_key(band, tl.minimum(i0 + BI, rows) - 1, columns), BJ)
    share = tl.cdiv(tl.maximum(last_tile - begin // BJ, 0), splits)
    first_tile = begin // BJ + split * share

    query_at = matrix_of(b, sizes, query) + begin_q * query.row
    key_at = matrix_of(b, sizes, key) + begin_k * key.row
    value_at = matrix_of(b, sizes, value) + begin_k * value.row
    weights_at = vector_of(b, sizes, weights)
    query_panel = lead_index(b, sizes, query_panels.strides) + tile
    key_panel = lead_index(b, sizes, key_panels.strides) + first_k
    mask_at = mask_of(b, sizes, mask)
    tangent_query_panel = lead_index(b, tangents.sizes, tangents.query_panels.strides) + tile
    tangent_key_panel = lead_index(b, tangents.sizes, tangents.key_panels.strides) + first_k
    tangent_weights = vector_of(b, tangents.sizes, tangents.weights)
    mask_tangent_at = mask_of(b, tangents.sizes, tangents.mask)
    row = (wide(split) * leads + b) * n + begin_q
    context += (row + i0) * dv
    context_tangent += (row + i0) * dv

    highest = tl.full((BI,), -float("inf"), tl.float32)
    total = tl.zeros((BI,), tl.float32)
    moment = tl.zeros((BI,), tl.float32)  # the sum of exp(s - highest) (s' - origin)
    origin = tl.zeros((BI,), tl.float32)
    started = False
    for jt in range(first_tile, tl.minimum(first_tile + share, last_tile)):
        j = jt * BJ + tile_j
        live = True
        if MASK != NONE:
            live = any_takes_part(i, j, rows, start, columns, mask, mask_at, band, MASK)
        if live:
            x, dx = tangent_tile(
                query, query_at, query_panels, query_panel, i0, rows, key, key_at, key_panels,
                key_panel + jt, jt * BJ, columns, weights_at, tangents, tangent_query_panel,
                tangent_key_panel + jt, tangent_weights, d, padded, negative_slope, ACTIVATION,
                SHAPE, CHUNKS, TARGET,
            )  # fmt: skip
            takes, added = taking_part(i, j, rows, start, columns, mask, mask_at, band, MASK)
            x = tl.where(takes, x + added, -float("inf"))
            if tangents.mask is not None:
                at = mask_tangent_at + i.to(tl.int64) * tangents.mask.row
                at += j.to(tl.int64) * tangents.mask.unit
                dx += tl.load(at, mask=takes, other=0.0).to(tl.float32)
            dx = tl.where(takes, dx, 0.0)
            if scores is not None:
                corner = (wide(b) * n + i0) * m + jt * BJ
                inside = (i < rows) & (j < m)
                tl.store(scores + corner + tile_i * m + tile_j, x, mask=inside)
                tl.store(scores_tangent + corner + tile_i * m + tile_j, dx, mask=inside)
            # transposed, a thread has many keys of one query and little to keep for each
            x = tl.trans(as_matrix(x))
            dx = tl.trans(as_matrix(dx))
            high = tl.max(x, 0)
            found = tl.max(tl.where(x == high[None, :], dx, -float("inf")), 0)
            new_origin = tl.where(high > highest, found, origin)
            shift = tl.where(highest == -float("inf"), 0.0, origin - new_origin)
            new = tl.maximum(highest, high)
            finite = tl.where(new == -float("inf"), 0.0, new)
            alpha = tl.exp(highest - finite)
            p = tl.exp(x - finite[None, :])
            moved = p * (dx - new_origin[None, :])
            moment = (moment + shift * total) * alpha + tl.sum(moved, 0)
            total = total * alpha + tl.sum(p, 0)
            highest = new
            origin = new_origin
            if dropout is not None:
                keep = tl.trans(as_matrix(kept(dropout, i, j, wide(b) * sequences + s)))
                p = tl.where(keep, p * dropout.keep_scale, 0.0)
                moved = tl.where(keep, moved * dropout.keep_scale, 0.0)
            value_tangent_at = value_at
            if tangents.value is not None:
                value_tangent_at = matrix_of(b, tangents.sizes, tangents.value)
                value_tangent_at += (begin_k + jt * BJ) * tangents.value.row
            _add_values(
                context, context_tangent, tl.trans(p), tl.trans(moved), alpha, shift, started,
                there, value, value_at + wide(jt * BJ) * value.row, tangents.value,
                value_tangent_at, start - jt * BJ, columns - jt * BJ, dv, BV, PRECISION,
            )  # fmt: skip
            started = True

    divisor = tl.where(total == 0.0, 1.0, total)
    mean = moment / divisor
    for c0 in range(0, dv, BV):
        c = c0 + tl.arange(0, BV)
        at = tl.arange(0, BI)[:, None] * dv + c[None, :]
        inside = there[:, None] & (c < dv)[None, :]
        old = tl.load(context + at, mask=inside & started, other=0.0)
        moved = tl.load(context_tangent + at, mask=inside & started, other=0.0)
        moved = (moved - mean[:, None] * old) / divisor[:, None]
        tl.store(context + at, old / divisor[:, None], mask=inside)
        tl.store(context_tangent + at, moved, mask=inside)
    tl.store(lse + row + row_i, highest + tl.log(total), mask=there)
    tl.store(lse_tangent + row + row_i, origin + mean, mask=there)


@triton.jit(do_not_specialize=ANY)
def combine_jvp_kernel(
    part,
    part_lse,
    part_tangent,
    part_lse_tangent,
    context,
    lse,
    context_tangent,
    lse_tangent,
    rows,
    dv,
    splits,
    BV: tl.constexpr,
):
    """Program (row): the results of its splits, each weighted by its share of the whole."""
    row = tl.program_id(0).to(tl.int64)
    highest = -float("inf")
    for split in range(0, splits):
        highest = tl.maximum(highest, tl.load(part_lse + wide(split) * rows + row))
    finite = tl.where(highest == -float("inf"), 0.0, highest)
    total = 0.0
    for split in range(0, splits):
        total += tl.exp(tl.load(part_lse + wide(split) * rows + row) - finite)
    divisor = tl.where(total == 0.0, 1.0, total)
    moved = 0.0
    for split in range(0, splits):
        at = wide(split) * rows + row
        share = tl.exp(tl.load(part_lse + at) - finite) / divisor
        moved += share * tl.load(part_lse_tangent + at)
    for c0 in range(0, dv, BV):
        c = c0 + tl.arange(0, BV)
        x = tl.zeros((BV,), tl.float32)
        dx = tl.zeros((BV,), tl.float32)
        for split in range(0, splits):
            at = wide(split) * rows + row
            share = tl.exp(tl.load(part_lse + at) - finite) / divisor
            apart = tl.load(part_lse_tangent + at) - moved
            y = tl.load(part + at * dv + c, mask=c < dv, other=0.0)
            dy = tl.load(part_tangent + at * dv + c, mask=c < dv, other=0.0)
            x += share * y
            dx += share * (dy + apart * y)
        tl.store(context + row * dv + c, x, mask=c < dv)
        tl.store(context_tangent + row * dv + c, dx, mask=c < dv)
    tl.store(lse + row, finite + tl.log(total))
    tl.store(lse_tangent + row, moved)


@triton.jit(do_not_specialize=ANY)
def weights_jvp_kernel(
    scores,
    lse,
    scores_tangent,
    lse_tangent,
    dropout,
    n,
    m,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """Turn scores, masked by -inf, into weights in place, and their tangents into the weights'."""
    jt, it, b = program_index(tl.cdiv(m, BJ), tl.cdiv(n, BI))
    j = (jt * BJ + tl.arange(0, BJ))[None, :]
    i = (it * BI + tl.arange(0, BI))[:, None]
    row = wide(b) * n + i
    there = (i < n) & (j < m)
    at = row * m + j
    end = tl.load(lse + row, mask=i < n, other=0.0)
    end = tl.where(end == -float("inf"), 0.0, end)
    a = tl.exp(tl.load(scores + at, mask=there, other=0.0) - end)
    moved = tl.load(scores_tangent + at, mask=there, other=0.0)
    moved = a * (moved - tl.load(lse_tangent + row, mask=i < n, other=0.0))
    if dropout is not None:
        keep = kept(dropout, i, j, b)
        a = tl.where(keep, a * dropout.keep_scale, 0.0)
        moved = tl.where(keep, moved * dropout.keep_scale, 0.0)
    tl.store(scores + at, a, mask=there)
    tl.store(scores_tangent + at, moved, mask=there)


@triton.jit(do_not_specialize=ANY)
def scores_jvp_kernel(
    query,
    query_panels,
    query_tiles,
    key,
    key_panels,
    key_tiles,
    weights,
    tangents,
    sizes,
    scores,
    scores_tangent,
    n,
    m,
    d,
    padded,
    negative_slope,
    ACTIVATION: tl.constexpr,
    SHAPE: tl.constexpr,
    CHUNKS: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, tile of queries, tile of keys): raw scores, (E1), and their tangents."""
    BI: tl.constexpr = SHAPE[0] * SHAPE[2]
    BJ: tl.constexpr = SHAPE[1] * SHAPE[3]
    jt, it, b = program_index(key_tiles, query_tiles)
    x, dx = tangent_tile(
        query, matrix_of(b, sizes, query), query_panels,
        lead_index(b, sizes, query_panels.strides) + it, it * BI, n,
        key, matrix_of(b, sizes, key), key_panels,
        lead_index(b, sizes, key_panels.strides) + jt, jt * BJ, m,
        vector_of(b, sizes, weights), tangents,
        lead_index(b, tangents.sizes, tangents.query_panels.strides) + it,
        lead_index(b, tangents.sizes, tangents.key_panels.strides) + jt,
        vector_of(b, tangents.sizes, tangents.weights),
        d, padded, negative_slope, ACTIVATION, SHAPE, CHUNKS, TARGET,
    )  # fmt: skip
    i, j = places(SHAPE)
    at = (wide(b) * n + it * BI) * m + jt * BJ + i * m + j
    inside = (i < n - it * BI) & (j < m - jt * BJ)
    tl.store(scores + at, x, mask=inside)
    tl.store(scores_tangent + at, dx, mask=inside)
