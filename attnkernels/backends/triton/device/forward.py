"""Scores, softmax and context in one pass, (E1)-(E3): a tile of queries against tiles of keys.

The context is kept in memory, not in registers, which the scores need: a tile of scores costs BI *
BJ * d elements, the update of its context 2 * BI * dv numbers of the second-level cache.
"""

import triton
import triton.language as tl

from .mask import NONE, any_takes_part, kept, taking_part
from .rows import ANY, extent, lead_index, lead_offset, sequence_of, wide
from .score import as_matrix, places, score_tile


@triton.jit
def _add_values(
    context,
    p,
    alpha,
    started,
    there,
    value,
    value_row,
    value_unit,
    m,
    dv,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """context = alpha * context + p @ value[:m]; what is not `started` counts as 0.

    Offsets inside a tile have 32 bits, of which a tile needs less: registers are short here.
    """
    i = tl.arange(0, p.shape[0])
    j = tl.arange(0, p.shape[1])
    for c0 in range(0, dv, BV):
        c = c0 + tl.arange(0, BV)
        at_context = i[:, None] * dv + c[None, :]
        at = j[:, None] * value_row + c[None, :] * value_unit
        u = tl.load(value + at, mask=(j < m)[:, None] & (c < dv)[None, :], other=0.0)
        inside = there[:, None] & (c < dv)[None, :]
        old = tl.load(context + at_context, mask=inside & started, other=0.0)
        new = tl.dot(p, u.to(tl.float32), input_precision=PRECISION) + old * alpha[:, None]
        tl.store(context + at_context, new, mask=inside)
    tl.debug_barrier()  # the next tile may read a number in another thread


@triton.jit(do_not_specialize=ANY)
def forward_kernel(
    query,
    query_strides,
    query_row,
    query_unit,
    query_panels,
    query_ranges,
    query_panel_strides,
    query_tiles,
    key,
    key_strides,
    key_row,
    key_unit,
    key_panels,
    key_ranges,
    key_panel_strides,
    value,
    value_strides,
    value_row,
    value_unit,
    weights,
    weight_strides,
    mask,
    mask_strides,
    mask_row,
    mask_column,
    lengths,
    length_strides,
    cu_seqlens_q,
    cu_seqlens_k,
    sequences,
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
    padded,
    dv,
    splits,
    negative_slope,
    ACTIVATION: tl.constexpr,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr,
    VARLEN: tl.constexpr,
    SCORES: tl.constexpr,
    RI: tl.constexpr,
    RJ: tl.constexpr,
    TI: tl.constexpr,
    TJ: tl.constexpr,
    BV: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, tile of queries, split of keys). n and m are all the rows there are, per b."""
    BI: tl.constexpr = RI * TI
    BJ: tl.constexpr = RJ * TJ
    pid = tl.program_id(0)
    split = pid % splits
    tile = pid // splits % query_tiles
    b = pid // splits // query_tiles
    s = 0
    if VARLEN:
        s = sequence_of(cu_seqlens_q, sequences, tile, BI)
    begin_q, rows, first_q = extent(cu_seqlens_q, s, n, BI, VARLEN)
    begin_k, columns, first_k = extent(cu_seqlens_k, s, m, BJ, VARLEN)
    i0 = (tile - first_q) * BI
    if i0 >= rows:
        return
    if LENGTHS:
        columns = tl.load(lengths + lead_index(b, sizes, length_strides)).to(tl.int32)
    tile_i, tile_j = places(RI, RJ, TI, TJ)
    i = i0 + tile_i
    row_i = i0 + tl.arange(0, BI)
    there = row_i < rows
    end = columns
    if CAUSAL:
        end = tl.minimum(end, i0 + BI)
    live_tiles = tl.cdiv(end, BJ)
    share = tl.cdiv(live_tiles, splits)

    query += lead_offset(b, sizes, query_strides) + begin_q * query_row
    key += lead_offset(b, sizes, key_strides) + begin_k * key_row
    value += lead_offset(b, sizes, value_strides) + begin_k * value_row
    weights += lead_index(b, sizes, weight_strides)
    query_panel = lead_index(b, sizes, query_panel_strides) + tile
    key_panel = lead_index(b, sizes, key_panel_strides) + first_k
    if MASK != NONE:
        mask += lead_index(b, sizes, mask_strides)
    row = (wide(split) * leads + b) * n + begin_q
    context += (row + i0) * dv

    highest = tl.full((BI,), -float("inf"), tl.float32)
    total = tl.zeros((BI,), tl.float32)
    started = False
    for jt in range(split * share, tl.minimum((split + 1) * share, live_tiles)):
        j = jt * BJ + tile_j
        live = True
        if MASK != NONE:
            live = any_takes_part(i, j, rows, columns, mask, mask_row, mask_column, CAUSAL, MASK)
        if live:
            x = score_tile(
                query_panels,
                query_ranges,
                query_panel,
                query,
                query_row,
                query_unit,
                i0,
                rows,
                key_panels,
                key_ranges,
                key_panel + jt,
                key,
                key_row,
                key_unit,
                jt * BJ,
                columns,
                weights,
                d,
                padded,
                negative_slope,
                ACTIVATION,
                RI,
                RJ,
                TI,
                TJ,
                CHUNKS,
                TARGET,
            )
            takes, added = taking_part(
                i, j, rows, columns, mask, mask_row, mask_column, CAUSAL, MASK
            )
            x = tl.where(takes, x + added, -float("inf"))
            if SCORES:
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
            if DROPOUT:
                at = wide(b) * sequences + s
                keep = tl.trans(as_matrix(kept(seed, i, j, at, threshold)))
                p = tl.where(keep, p * keep_scale, 0.0)
            _add_values(
                context,
                tl.trans(p),
                alpha,
                started,
                there,
                value + wide(jt * BJ) * value_row,
                value_row,
                value_unit,
                columns - jt * BJ,
                dv,
                BV,
                PRECISION,
            )
            started = True

    divisor = tl.where(total == 0.0, 1.0, total)
    for c0 in range(0, dv, BV):
        c = c0 + tl.arange(0, BV)
        at = tl.arange(0, BI)[:, None] * dv + c[None, :]
        inside = there[:, None] & (c < dv)[None, :]
        old = tl.load(context + at, mask=inside & started, other=0.0)
        tl.store(context + at, old / divisor[:, None], mask=inside)
    tl.store(lse + row + row_i, highest + tl.log(total), mask=there)


@triton.jit(do_not_specialize=ANY)
def combine_kernel(part, part_lse, context, lse, rows, dv, splits, BV: tl.constexpr):
    """One row: the contexts of its splits, weighted by what they are of the whole."""
    row = tl.program_id(0).to(tl.int64)
    highest = -float("inf")
    for split in range(0, splits):
        highest = tl.maximum(highest, tl.load(part_lse + wide(split) * rows + row))
    finite = tl.where(highest == -float("inf"), 0.0, highest)
    total = 0.0
    for split in range(0, splits):
        total += tl.exp(tl.load(part_lse + wide(split) * rows + row) - finite)
    divisor = tl.where(total == 0.0, 1.0, total)
    for c0 in range(0, dv, BV):
        c = c0 + tl.arange(0, BV)
        mixed = tl.zeros((BV,), tl.float32)
        for split in range(0, splits):
            at = wide(split) * rows + row
            share = tl.exp(tl.load(part_lse + at) - finite) / divisor
            mixed += share * tl.load(part + at * dv + c, mask=c < dv, other=0.0)
        tl.store(context + row * dv + c, mixed, mask=c < dv)
    tl.store(lse + row, finite + tl.log(total))


@triton.jit(do_not_specialize=ANY)
def weights_kernel(
    scores,
    lse,
    seed,
    threshold,
    keep_scale,
    n,
    m,
    DROPOUT: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """Scores, masked by -inf, become weights in place: (E2), after dropout."""
    row_tiles = tl.cdiv(n, BI)
    column_tiles = tl.cdiv(m, BJ)
    pid = tl.program_id(0)
    j = (pid % column_tiles * BJ + tl.arange(0, BJ))[None, :]
    i = (pid // column_tiles % row_tiles * BI + tl.arange(0, BI))[:, None]
    b = pid // column_tiles // row_tiles
    row = wide(b) * n + i
    there = (i < n) & (j < m)
    at = row * m + j
    end = tl.load(lse + row, mask=i < n, other=0.0)
    end = tl.where(end == -float("inf"), 0.0, end)
    a = tl.exp(tl.load(scores + at, mask=there, other=0.0) - end)
    if DROPOUT:
        a = tl.where(kept(seed, i, j, b, threshold), a * keep_scale, 0.0)
    tl.store(scores + at, a, mask=there)
