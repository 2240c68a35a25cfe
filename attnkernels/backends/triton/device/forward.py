"""Scores, softmax and context in one pass, (E1)-(E3): a tile of queries against tiles of keys.

The context is kept in memory, because the scores need the registers: a tile of scores costs BI * BJ
* d elements, the update of its context 2 * BI * dv numbers of the second-level cache.
"""

import triton
import triton.language as tl

from .mask import NONE, any_takes_part, end_key, first_key, kept, mask_of, taking_part
from .maths import row_softmax
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
from .score import as_matrix, places, score_tile


@triton.jit
def _add_values(
    context,
    p,
    alpha,
    started,
    there,
    value,
    value_at,
    start,
    m,
    dv,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Set context to alpha * context + p @ value[start:m], or to the latter until `started`.

    Offsets inside a tile have 32 bits to save registers.
    """
    i = tl.arange(0, p.shape[0])
    j = tl.arange(0, p.shape[1])
    seen = (j >= start) & (j < m)
    for c0 in tl.range(0, dv, BV, disable_licm=True):  # hoisted, the parts of p would spill
        c = c0 + tl.arange(0, BV)
        at_context = i[:, None] * dv + c[None, :]
        at = j[:, None] * value.row + c[None, :] * value.unit
        u = tl.load(value_at + at, mask=seen[:, None] & (c < dv)[None, :], other=0.0)
        inside = there[:, None] & (c < dv)[None, :]
        old = tl.load(context + at_context, mask=inside & started, other=0.0)
        new = tl.dot(p, u.to(tl.float32), input_precision=PRECISION) + old * alpha[:, None]
        tl.store(context + at_context, new, mask=inside)
    tl.debug_barrier()  # the next tile may read a number in another thread


@triton.jit(do_not_specialize=ANY)
def forward_kernel(
    query,
    query_panels,
    query_tiles,
    key,
    key_panels,
    value,
    weights,
    mask,
    band,
    bounds,
    cu_seqlens_q,
    cu_seqlens_k,
    sequences,
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
    padded,
    dv,
    splits,
    negative_slope,
    sines,
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
    row = (wide(split) * leads + b) * n + begin_q
    context += (row + i0) * dv

    highest = tl.full((BI,), -float("inf"), tl.float32)
    total = tl.zeros((BI,), tl.float32)
    started = False
    for jt in range(first_tile, tl.minimum(first_tile + share, last_tile)):
        j = jt * BJ + tile_j
        live = True
        if MASK != NONE:
            live = any_takes_part(i, j, rows, start, columns, mask, mask_at, band, MASK)
        if live:
            x = score_tile(
                query, query_at, query_panels, query_panel, i0, rows, key, key_at, key_panels,
                key_panel + jt, jt * BJ, columns, weights_at, d, padded, negative_slope,
                sines, ACTIVATION, SHAPE, CHUNKS, TARGET,
            )  # fmt: skip
            takes, added = taking_part(i, j, rows, start, columns, mask, mask_at, band, MASK)
            x = tl.where(takes, x + added, -float("inf"))
            if scores is not None:
                corner = scores + (wide(b) * n + i0) * m + jt * BJ
                tl.store(corner + tile_i * m + tile_j, x, mask=(i < rows) & (j < m))
            # transposed, a thread has many keys of one query and little to keep for each
            x = tl.trans(as_matrix(x))
            new = tl.maximum(highest, tl.max(x, 0))
            finite = tl.where(new == -float("inf"), 0.0, new)
            alpha = tl.exp(highest - finite)
            p = tl.exp(x - finite[None, :])
            total = total * alpha + tl.sum(p, 0)
            highest = new
            if dropout is not None:
                keep = tl.trans(as_matrix(kept(dropout, i, j, wide(b) * sequences + s)))
                p = tl.where(keep, p * dropout.keep_scale, 0.0)
            _add_values(
                context, tl.trans(p), alpha, started, there, value,
                value_at + wide(jt * BJ) * value.row, start - jt * BJ, columns - jt * BJ, dv, BV,
                PRECISION,
            )  # fmt: skip
            started = True

    divisor = tl.where(total == 0.0, 1.0, total)
    for c0 in range(0, dv, BV):
        c = c0 + tl.arange(0, BV)
        at = tl.arange(0, BI)[:, None] * dv + c[None, :]
        inside = there[:, None] & (c < dv)[None, :]
        old = tl.load(context + at, mask=inside & started, other=0.0)
        tl.store(context + at, old / divisor[:, None], mask=inside)
    tl.store(lse + row + row_i, highest + tl.log(total), mask=there)
    tl.store(softmax + 2 * (row + row_i), highest, mask=there)
    tl.store(softmax + 2 * (row + row_i) + 1, total, mask=there)


@triton.jit
def _of_split(softmax, highest):
    """Return the sum of exp(s - highest) over a split."""
    return tl.exp(tl.load(softmax) - highest) * tl.load(softmax + 1)


@triton.jit(do_not_specialize=ANY)
def combine_kernel(part, part_softmax, context, lse, softmax, rows, dv, splits, BV: tl.constexpr):
    """Program (row): the contexts of its splits, each weighted by its share of the whole."""
    row = tl.program_id(0).to(tl.int64)
    highest = -float("inf")
    for split in range(0, splits):
        highest = tl.maximum(highest, tl.load(part_softmax + 2 * (wide(split) * rows + row)))
    finite = tl.where(highest == -float("inf"), 0.0, highest)
    total = 0.0
    for split in range(0, splits):
        total += _of_split(part_softmax + 2 * (wide(split) * rows + row), finite)
    divisor = tl.where(total == 0.0, 1.0, total)
    for c0 in range(0, dv, BV):
        c = c0 + tl.arange(0, BV)
        mixed = tl.zeros((BV,), tl.float32)
        for split in range(0, splits):
            at = wide(split) * rows + row
            share = _of_split(part_softmax + 2 * at, finite) / divisor
            mixed += share * tl.load(part + at * dv + c, mask=c < dv, other=0.0)
        tl.store(context + row * dv + c, mixed, mask=c < dv)
    tl.store(lse + row, finite + tl.log(total))
    tl.store(softmax + 2 * row, highest)
    tl.store(softmax + 2 * row + 1, total)


@triton.jit(do_not_specialize=ANY)
def weights_kernel(
    scores,
    softmax,
    dropout,
    n,
    m,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """Turn scores, masked by -inf, into weights in place: (E2), after dropout."""
    jt, it, b = program_index(tl.cdiv(m, BJ), tl.cdiv(n, BI))
    j = (jt * BJ + tl.arange(0, BJ))[None, :]
    i = (it * BI + tl.arange(0, BI))[:, None]
    row = wide(b) * n + i
    there = (i < n) & (j < m)
    at = row * m + j
    high, share = row_softmax(softmax, None, row, i < n)
    a = tl.exp(tl.load(scores + at, mask=there, other=0.0) - high) * share
    if dropout is not None:
        a = tl.where(kept(dropout, i, j, b), a * dropout.keep_scale, 0.0)
    tl.store(scores + at, a, mask=there)
