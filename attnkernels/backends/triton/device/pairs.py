"""One number for every pair of a query and a key: raw scores, or the gradients that reach them.

The backward needs d numbers of each pair's gradient but d scores to make it: so it makes ds, (E4),
for a window of queries, and sweep.py goes through it. The windows keep the memory linear in n + m.
"""

import triton
import triton.language as tl

from .mask import NONE, any_takes_part, kept, taking_part
from .rows import ANY, extent, lead_index, lead_offset, sequence_of, wide
from .score import as_matrix, as_tile, places, score_tile


@triton.jit(do_not_specialize=ANY)
def scores_kernel(
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
    key_tiles,
    weights,
    weight_strides,
    sizes,
    scores,
    n,
    m,
    d,
    padded,
    negative_slope,
    ACTIVATION: tl.constexpr,
    RI: tl.constexpr,
    RJ: tl.constexpr,
    TI: tl.constexpr,
    TJ: tl.constexpr,
    CHUNKS: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, tile of queries, tile of keys)."""
    BI: tl.constexpr = RI * TI
    BJ: tl.constexpr = RJ * TJ
    pid = tl.program_id(0)
    jt = pid % key_tiles
    it = pid // key_tiles % query_tiles
    b = pid // key_tiles // query_tiles
    x = score_tile(
        query_panels,
        query_ranges,
        lead_index(b, sizes, query_panel_strides) + it,
        query + lead_offset(b, sizes, query_strides),
        query_row,
        query_unit,
        it * BI,
        n,
        key_panels,
        key_ranges,
        lead_index(b, sizes, key_panel_strides) + jt,
        key + lead_offset(b, sizes, key_strides),
        key_row,
        key_unit,
        jt * BJ,
        m,
        weights + lead_index(b, sizes, weight_strides),
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
    i, j = places(RI, RJ, TI, TJ)
    corner = scores + (wide(b) * n + it * BI) * m + jt * BJ
    tl.store(corner + i * m + j, x, mask=(i < n - it * BI) & (j < m - jt * BJ))


@triton.jit(do_not_specialize=ANY)
def gradient_kernel(
    query,
    query_strides,
    query_row,
    query_unit,
    query_panels,
    query_ranges,
    query_panel_strides,
    key,
    key_strides,
    key_row,
    key_unit,
    key_panels,
    key_ranges,
    key_panel_strides,
    key_tiles,
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
    lse,
    delta,
    grad_context,
    grad_weights,
    ds,
    used,
    n,
    m,
    d,
    padded,
    dv,
    window,
    width,
    window_tiles,
    negative_slope,
    ACTIVATION: tl.constexpr,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr,
    VARLEN: tl.constexpr,
    CONTEXT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    USED: tl.constexpr,
    RI: tl.constexpr,
    RJ: tl.constexpr,
    TI: tl.constexpr,
    TJ: tl.constexpr,
    BV: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, tile of keys, tile of queries in the window that starts at query `window`).

    ds and used (the weights after dropout) are transposed: rows of `width` queries, one a key of
    every tile, and 0 where a pair takes no part.
    """
    BI: tl.constexpr = RI * TI
    BJ: tl.constexpr = RJ * TJ
    pid = tl.program_id(0)
    it = pid % window_tiles
    kt = pid // window_tiles % key_tiles
    b = pid // window_tiles // key_tiles
    s = 0
    if VARLEN:
        s = sequence_of(cu_seqlens_k, sequences, kt, BJ)
    begin_q, rows, first_q = extent(cu_seqlens_q, s, n, BI, VARLEN)
    begin_k, columns, first_k = extent(cu_seqlens_k, s, m, BJ, VARLEN)
    i0 = window + it * BI
    j0 = (kt - first_k) * BJ
    if i0 >= rows:
        return
    if LENGTHS:
        columns = tl.load(lengths + lead_index(b, sizes, length_strides)).to(tl.int32)
    tile_i, tile_j = places(RI, RJ, TI, TJ)
    i = i0 + tile_i
    j = j0 + tile_j
    if MASK != NONE:
        mask += lead_index(b, sizes, mask_strides)
    some = any_takes_part(i, j, rows, columns, mask, mask_row, mask_column, CAUSAL, MASK)
    at = (wide(b) * key_tiles + kt) * BJ * width + it * BI
    ds += at
    used += at
    at = tl.arange(0, BJ)[:, None] * width + tl.arange(0, BI)[None, :]
    if some == 0:
        tl.store(ds + at, tl.zeros((BJ, BI), tl.float32))
        if USED:
            tl.store(used + at, tl.zeros((BJ, BI), tl.float32))
        return

    x = score_tile(
        query_panels,
        query_ranges,
        lead_index(b, sizes, query_panel_strides) + first_q + i0 // BI,
        query + lead_offset(b, sizes, query_strides) + begin_q * query_row,
        query_row,
        query_unit,
        i0,
        rows,
        key_panels,
        key_ranges,
        lead_index(b, sizes, key_panel_strides) + kt,
        key + lead_offset(b, sizes, key_strides) + begin_k * key_row,
        key_row,
        key_unit,
        j0,
        columns,
        weights + lead_index(b, sizes, weight_strides),
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
    takes, added = taking_part(i, j, rows, columns, mask, mask_row, mask_column, CAUSAL, MASK)
    row = wide(b) * n + begin_q + i0
    end = tl.load(lse + row + tile_i, mask=i < rows, other=0.0)
    end = tl.where(end == -float("inf"), 0.0, end)
    a = tl.where(takes, tl.exp(x + added - end), 0.0)

    g = tl.zeros((RI, RJ, TI, TJ), tl.float32)
    if CONTEXT:
        row_i = i0 + tl.arange(0, BI)
        row_j = j0 + tl.arange(0, BJ)
        value += lead_offset(b, sizes, value_strides) + (begin_k + j0) * value_row
        grad_context += row * dv
        product = tl.zeros((BI, BJ), tl.float32)
        for c0 in range(0, dv, BV):
            c = c0 + tl.arange(0, BV)
            inside = (row_i < rows)[:, None] & (c < dv)[None, :]
            at_dc = tl.arange(0, BI)[:, None] * dv + c[None, :]
            dc = tl.load(grad_context + at_dc, mask=inside, other=0.0)
            inside = (c < dv)[:, None] & (row_j < columns)[None, :]
            at_u = c[:, None] * value_unit + tl.arange(0, BJ)[None, :] * value_row
            u = tl.load(value + at_u, mask=inside, other=0.0).to(tl.float32)
            product = tl.dot(dc, u, product, input_precision=PRECISION)
        g = as_tile(product, RI, RJ, TI, TJ)
    if WEIGHTS:
        corner = grad_weights + row * m + j0
        g += tl.load(corner + tile_i * m + tile_j, mask=takes, other=0.0)
    z = a
    if DROPOUT:
        keep = kept(seed, i, j, wide(b) * sequences + s, threshold)
        z = tl.where(keep, a * keep_scale, 0.0)
        g = tl.where(keep, g * keep_scale, 0.0)
    g = a * (g - tl.load(delta + row + tile_i, mask=i < rows, other=0.0))
    tl.store(ds + at, tl.trans(as_matrix(tl.where(takes, g, 0.0))))
    if USED:
        tl.store(used + at, tl.trans(as_matrix(z)))


@triton.jit(do_not_specialize=ANY)
def value_kernel(
    used,
    grad_context,
    grad_value,
    cu_seqlens_q,
    cu_seqlens_k,
    sequences,
    key_tiles,
    n,
    m,
    dv,
    window,
    width,
    VARLEN: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (b, tile of keys, BV columns): adds the window's part of du, (E6)."""
    columns = tl.cdiv(dv, BV)
    pid = tl.program_id(0)
    c = pid % columns * BV + tl.arange(0, BV)
    kt = pid // columns % key_tiles
    b = pid // columns // key_tiles
    s = 0
    if VARLEN:
        s = sequence_of(cu_seqlens_k, sequences, kt, BJ)
    begin_q, rows, _ = extent(cu_seqlens_q, s, n, BI, VARLEN)
    begin_k, count, first_k = extent(cu_seqlens_k, s, m, BJ, VARLEN)
    j = (kt - first_k) * BJ + tl.arange(0, BJ)
    used += ((wide(b) * key_tiles + kt) * BJ + tl.arange(0, BJ))[:, None] * width
    at = (wide(b) * m + begin_k + j)[:, None] * dv + c[None, :]
    inside = (j < count)[:, None] & (c < dv)[None, :]
    du = tl.load(grad_value + at, mask=inside, other=0.0)
    for local in range(0, tl.minimum(rows - window, width), BI):
        i = local + tl.arange(0, BI)
        row = wide(b) * n + begin_q + window + i
        there = (window + i < rows)[:, None] & (c < dv)[None, :]
        dc = tl.load(grad_context + row[:, None] * dv + c[None, :], mask=there, other=0.0)
        du = tl.dot(tl.load(used + i[None, :]), dc, du, input_precision=PRECISION)
    tl.store(grad_value + at, du, mask=inside)
