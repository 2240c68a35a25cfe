"""One number per pair of a query and a key: raw scores, or the gradients that reach them.

The backward needs d numbers to make the gradient ds of a score, (E4), and d more to use it. It
makes ds for a window of queries, and sweep.py goes through that: with windows, memory stays linear
in n + m. Where queries see few of the keys, a run of tiles of queries takes the place of the
window, and ds has room only for the tiles of keys that each of them sees.
"""

import triton
import triton.language as tl

from .delta import MOST, centred, context_error
from .mask import any_takes_part, end_key, first_key, kept, mask_of, seeing_queries, taking_part
from .maths import row_softmax
from .rows import (
    ANY,
    SCALE,
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
from .score import as_matrix, as_tile, places, score_tile


@triton.jit(do_not_specialize=ANY)
def scores_kernel(
    query,
    query_panels,
    query_tiles,
    key,
    key_panels,
    key_tiles,
    weights,
    sizes,
    scores,
    n,
    m,
    d,
    padded,
    negative_slope,
    sines,
    ACTIVATION: tl.constexpr,
    SHAPE: tl.constexpr,
    CHUNKS: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (b, tile of queries, tile of keys)."""
    BI: tl.constexpr = SHAPE[0] * SHAPE[2]
    BJ: tl.constexpr = SHAPE[1] * SHAPE[3]
    jt, it, b = program_index(key_tiles, query_tiles)
    query_panel = lead_index(b, sizes, query_panels.strides) + it
    key_panel = lead_index(b, sizes, key_panels.strides) + jt
    x = score_tile(
        query, matrix_of(b, sizes, query), query_panels, query_panel, it * BI, n,
        key, matrix_of(b, sizes, key), key_panels, key_panel, jt * BJ, m,
        vector_of(b, sizes, weights), d, padded, negative_slope, sines, ACTIVATION, SHAPE, CHUNKS,
        TARGET,
    )  # fmt: skip
    i, j = places(SHAPE)
    corner = scores + (wide(b) * n + it * BI) * m + jt * BJ
    tl.store(corner + i * m + j, x, mask=(i < n - it * BI) & (j < m - jt * BJ))


@triton.jit(do_not_specialize=ANY)
def gradient_kernel(
    query,
    query_panels,
    key,
    key_panels,
    key_tiles,
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
    outer,
    ds,
    used,
    run,
    n,
    m,
    d,
    padded,
    dv,
    window,
    width,
    window_tiles,
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
    """Program (b, tile of keys, tile of queries in the window that starts at query `window`).

    ds and used (the weights after dropout) are transposed: rows of `width` queries, one per key of
    every tile, and 0 where a pair takes no part. With a run, program (b, tile of queries, one of
    the tiles of keys that it sees), rows are of BI queries.
    """
    BI: tl.constexpr = SHAPE[0] * SHAPE[2]
    BJ: tl.constexpr = SHAPE[1] * SHAPE[3]
    if run is None:
        it, kt, b = program_index(window_tiles, key_tiles)
        s = sequence_of(cu_seqlens_k, sequences, kt, BJ)
        begin_q, rows, first_q = extent(cu_seqlens_q, s, n, BI)
        begin_k, columns, first_k = extent(cu_seqlens_k, s, m, BJ)
        start, columns = start_of(b, sizes, bounds), end_of(b, sizes, bounds, columns)
        i0 = window + it * BI
        j0 = (kt - first_k) * BJ
        end = j0 + 1
        corner = (wide(b) * key_tiles + kt) * BJ * width + it * BI
        row_length = width
    else:
        slot, it, b = program_index(run.slots // SCALE, run.tiles // SCALE)
        tile = run.first // SCALE + it
        s = sequence_of(cu_seqlens_q, sequences, tile, BI)
        begin_q, rows, first_q = extent(cu_seqlens_q, s, n, BI)
        begin_k, columns, first_k = extent(cu_seqlens_k, s, m, BJ)
        start, columns = start_of(b, sizes, bounds), end_of(b, sizes, bounds, columns)
        i0 = (tile - first_q) * BI
        end = end_key(band, tl.minimum(i0 + BI, rows) - 1, columns)
        kt = first_k + first_key(band, i0) // BJ + slot
        j0 = (kt - first_k) * BJ
        corner = ((wide(b) * (run.tiles // SCALE) + it) * (run.slots // SCALE) + slot) * BJ * BI
        row_length = BI
    if (i0 >= rows) | (j0 >= end):
        return
    tile_i, tile_j = places(SHAPE)
    i = i0 + tile_i
    j = j0 + tile_j
    mask_at = mask_of(b, sizes, mask)
    some = any_takes_part(i, j, rows, start, columns, mask, mask_at, band, MASK)
    ds += corner
    if used is not None:
        used += corner
    at = tl.arange(0, BJ)[:, None] * row_length + tl.arange(0, BI)[None, :]
    if some == 0:
        tl.store(ds + at, tl.zeros((BJ, BI), tl.float32))
        if used is not None:
            tl.store(used + at, tl.zeros((BJ, BI), tl.float32))
        return

    query_panel = lead_index(b, sizes, query_panels.strides) + first_q + i0 // BI
    key_panel = lead_index(b, sizes, key_panels.strides) + kt
    query_at = matrix_of(b, sizes, query) + begin_q * query.row
    key_at = matrix_of(b, sizes, key) + begin_k * key.row
    x = score_tile(
        query, query_at, query_panels, query_panel, i0, rows, key, key_at, key_panels, key_panel,
        j0, columns, vector_of(b, sizes, weights), d, padded, negative_slope, sines, ACTIVATION,
        SHAPE, CHUNKS, TARGET,
    )  # fmt: skip
    takes, added = taking_part(i, j, rows, start, columns, mask, mask_at, band, MASK)
    row = wide(b) * n + begin_q + i0
    if outer.given is not None:
        a = tl.load(outer.given + (row + tile_i) * m + j0 + tile_j, mask=takes, other=0.0)
    else:
        high, share = row_softmax(outer.softmax, outer.lse, row + tile_i, i < rows)
        a = tl.where(takes, tl.exp(x + added - high) * share, 0.0)

    g = tl.zeros(SHAPE, tl.float32)
    if outer.grad_context is not None:
        row_i = i0 + tl.arange(0, BI)
        row_j = j0 + tl.arange(0, BJ)
        value_at = matrix_of(b, sizes, value) + (begin_k + j0) * value.row
        grad_context = outer.grad_context + row * dv
        product = tl.zeros((BI, BJ), tl.float32)
        for c0 in range(0, dv, BV):
            c = c0 + tl.arange(0, BV)
            inside = (row_i < rows)[:, None] & (c < dv)[None, :]
            at_dc = tl.arange(0, BI)[:, None] * dv + c[None, :]
            dc = tl.load(grad_context + at_dc, mask=inside, other=0.0)
            inside = (c < dv)[:, None] & (row_j < columns)[None, :]
            at_u = c[:, None] * value.unit + tl.arange(0, BJ)[None, :] * value.row
            u = tl.load(value_at + at_u, mask=inside, other=0.0).to(tl.float32)
            product = tl.dot(dc, u, product, input_precision=PRECISION)
        g = as_tile(product, SHAPE)
    if outer.grad_weights is not None:
        grad_weights = outer.grad_weights + row * m + j0
        g += tl.load(grad_weights + tile_i * m + tile_j, mask=takes, other=0.0)
    z = a
    if dropout is not None:
        keep = kept(dropout, i, j, wide(b) * sequences + s)
        z = tl.where(keep, a * dropout.keep_scale, 0.0)
        g = tl.where(keep, g * dropout.keep_scale, 0.0)
    g -= tl.load(outer.delta + row + tile_i, mask=i < rows, other=0.0)
    if tl.max(tl.ravel(a)) > MOST:
        most_of = as_matrix(a)
        local = tl.argmax(most_of, 1)
        ERROR: tl.constexpr = context_error(
            PRECISION, value.data.dtype.element_ty, dropout is not None
        )
        row_i = i0 + tl.arange(0, BI)
        centre = centred(
            outer, row + tl.arange(0, BI), (row_i < rows) & (tl.max(most_of, 1) > MOST), row_i,
            j0 + local, wide(b) * sequences + s, dropout, value,
            matrix_of(b, sizes, value) + begin_k * value.row, m, dv, BV, ERROR,
        )  # fmt: skip
        most = (tl.arange(0, BJ)[None, :] == local[:, None]) & (most_of > MOST)
        g = as_tile(tl.where(most, centre[:, None], as_matrix(g)), SHAPE)
    tl.store(ds + at, tl.trans(as_matrix(tl.where(takes, a * g, 0.0))))
    if used is not None:
        tl.store(used + at, tl.trans(as_matrix(z)))


@triton.jit(do_not_specialize=ANY)
def value_kernel(
    used,
    run,
    band,
    bounds,
    sizes,
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
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BV: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (b, tile of keys, BV columns): add the part of du, (E6), of the window or the run.

    It takes BI queries at a time; TILE is the number of those of a tile.
    """
    column, kt, b = program_index(tl.cdiv(dv, BV), key_tiles)
    c = column * BV + tl.arange(0, BV)
    s = sequence_of(cu_seqlens_k, sequences, kt, BJ)
    begin_q, rows, first_q = extent(cu_seqlens_q, s, n, TILE)
    begin_k, count, first_k = extent(cu_seqlens_k, s, m, BJ)
    j = (kt - first_k) * BJ + tl.arange(0, BJ)
    at = (wide(b) * m + begin_k + j)[:, None] * dv + c[None, :]
    inside = (j < count)[:, None] & (c < dv)[None, :]
    du = tl.load(grad_value + at, mask=inside, other=0.0)
    first_tile = 0
    if run is None:
        first_row = window
        last_row = window + tl.minimum(rows - window, width)
        used += ((wide(b) * key_tiles + kt) * BJ + tl.arange(0, BJ))[:, None] * width - window
    else:
        first_tile = run.first // SCALE - first_q
        columns = end_of(b, sizes, bounds, count)
        seen, last_row = seeing_queries(band, kt - first_k, columns, rows, BJ)
        first_row = tl.maximum(seen // BI, first_tile * (TILE // BI)) * BI
        last_row = tl.minimum(last_row, (first_tile + run.tiles // SCALE) * TILE)
    for i0 in range(first_row, last_row, BI):
        i = i0 + tl.arange(0, BI)
        row = wide(b) * n + begin_q + i
        there = (i < rows)[:, None] & (c < dv)[None, :]
        dc = tl.load(grad_context + row[:, None] * dv + c[None, :], mask=there, other=0.0)
        if run is None:
            part = tl.load(used + i[None, :])
        else:
            it = i0 // TILE
            slot = kt - first_k - first_key(band, it * TILE) // BJ
            corner = (wide(b) * (run.tiles // SCALE) + it - first_tile) * (run.slots // SCALE)
            corner = (corner + slot) * BJ * TILE + i0 % TILE
            rows_at = tl.arange(0, BJ)[:, None] * TILE + tl.arange(0, BI)[None, :]
            part = tl.load(used + corner + rows_at)
        du = tl.dot(part, dc, du, input_precision=PRECISION)
    tl.store(grad_value + at, du, mask=inside)
