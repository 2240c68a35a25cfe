"""The gradients of query, key and weight from those of the scores, (E5) and (E6), in one sweep.

A warp holds 4 * RI queries of LANES hidden units, one per lane, and goes through the keys. All sums
over queries lie inside a thread, all sums over keys in its registers, and nothing is exchanged.
Half of the reciprocals are shared by pairs of queries, which balances the reciprocal unit against
the others. Program (item, part of the queries, part of the keys, LANES hidden units) has partial
gradients of its own, which the caller sums: there are no atomics, and results are reproducible.
"""

import triton
import triton.language as tl

from .mask import end_key, first_key
from .maths import (
    FACTORED,
    PAIR,
    exp,
    gain,
    is_logistic,
    logistic,
    pointwise_with_slope,
    reciprocal,
    two,
    weighted,
)
from .prepare import row_ranges
from .rows import (
    ANY,
    SCALE,
    end_of,
    extent,
    lead_index,
    matrix_of,
    start_of,
    vector_of,
    wide,
)


@triton.jit
def _both(a, b):
    """Return the rows of a, then those of b, without leaving the registers."""
    joined = tl.permute(tl.join(a, b), (2, 0, 1))
    return tl.reshape(joined, (2 * a.shape[0], a.shape[1]))


@triton.jit
def _four(a, b, c, d):
    return _both(_both(a, b), _both(c, d))


@triton.jit
def _reciprocals(x0, x1, x2, x3, SHARED: tl.constexpr, TARGET: tl.constexpr):
    if SHARED:
        shared = reciprocal(x0 * x1, TARGET)
        r0 = x1 * shared
        r1 = x0 * shared
    else:
        r0 = reciprocal(x0, TARGET)
        r1 = reciprocal(x1, TARGET)
    return _four(r0, r1, reciprocal(x2, TARGET), reciprocal(x3, TARGET))


@triton.jit
def _halves(x, EVEN: tl.constexpr):
    """Return the even and the odd rows of x, or its first and last ones: the inverse of _both."""
    rows: tl.constexpr = x.shape[0] // 2
    if EVEN:
        pairs = tl.permute(tl.reshape(x, (rows, 2, x.shape[1])), (0, 2, 1))
    else:
        pairs = tl.permute(tl.reshape(x, (2, rows, x.shape[1])), (1, 2, 0))
    return tl.split(pairs)


@triton.jit
def add_products(to, a, b, RI: tl.constexpr):
    """Add the products of the rows of a and b, each by one multiply-add.

    tl.sum adds in a tree, so that half of the products would be instructions of their own.
    """
    if a.shape[0] == 1:
        return tl.fma(tl.reshape(a, to.shape), tl.reshape(b, to.shape), to)
    else:
        a0, a1 = _halves(a, a.shape[0] <= RI)
        b0, b1 = _halves(b, a.shape[0] <= RI)
        return add_products(add_products(to, a0, b0, RI), a1, b1, RI)


@triton.jit
def _add_sum(to, a, b, RI: tl.constexpr, TARGET: tl.constexpr):
    if TARGET == "":  # an interpreter, in which many small tensors take long
        return to + tl.sum(a * b, 0)
    else:
        return add_products(to, a, b, RI)


@triton.jit
def _sweep_tile(
    q0,
    q1,
    q2,
    q3,
    key,
    key_row,
    ds,
    width,
    grad_key,
    factor,
    j0,
    start,
    m,
    grad_query,
    grad_weight,
    d,
    inside,
    negative_slope,
    ACTIVATION: tl.constexpr,
    FROM_EXP: tl.constexpr,
    SHARED: tl.constexpr,
    RI: tl.constexpr,
    BJ: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Sweep the keys from start to m in the tile from j0 on.

    q0 to q3: queries; with FROM_EXP, their exponentials.
    """
    first = tl.maximum(j0, start)
    key += wide(first) * key_row
    grad_key += wide(first) * d
    pairs = (ds + wide(first) * width).to(tl.pointer_type(tl.int64)) + tl.arange(0, RI)[:, None]
    for _ in range(first, tl.minimum(m, j0 + BJ)):
        k = tl.load(key, mask=inside, other=0.0).to(tl.float32)
        s0, s1 = two(pairs)
        s2, s3 = two(pairs + RI)
        s = _four(s0, s1, s2, s3)
        if is_logistic(ACTIVATION):
            if FROM_EXP:
                b = exp(k * gain(ACTIVATION))
                x0 = 1.0 + q0 * b
                x1 = 1.0 + q1 * b
                x2 = 1.0 + q2 * b
                x3 = 1.0 + q3 * b
                f = _reciprocals(x0, x1, x2, x3, SHARED, TARGET)
                g = f - f * f
            else:
                x = tl.where(s == 0, 0.0, _four(q0, q1, q2, q3) + k)  # 0 adds 0 even to NaN
                f, g = logistic(x, ACTIVATION, TARGET)
        else:
            x = tl.where(s == 0, 0.0, _four(q0, q1, q2, q3) + k)
            f, g = pointwise_with_slope(x, negative_slope, ACTIVATION)
        s = tl.broadcast_to(s, g.shape)
        grad_query += s * g
        grad_weight = _add_sum(grad_weight, s, f, RI, TARGET)
        of_key = _add_sum(tl.zeros_like(grad_weight), s, g, RI, TARGET)
        row = tl.load(grad_key, mask=inside, other=0.0) + weighted(of_key, factor)
        tl.store(grad_key, row, mask=inside)
        key += key_row
        pairs += width // 2
        grad_key += d
    return grad_query, grad_weight


@triton.jit
def _rows(query, i, row, rows, inside):
    """Return float32 [RI, LANES]; rows past the end count as 0."""
    q = tl.load(query + i * row, mask=(i < rows) & inside[None, :], other=0.0)
    return q.to(tl.float32)


@triton.jit
def _nonzero(at, row, first, end, inside, ROWS: tl.constexpr):
    """Return [LANES]: whether an input in the rows from `first` to `end` is not 0."""
    highest = tl.zeros((inside.shape[0],), tl.int32)
    for i in range(first, end, ROWS):
        rows = _rows(at + wide(i) * row, tl.arange(0, ROWS)[:, None], row, end - i, inside)
        bits = rows.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # NaN is not 0 either
        highest = tl.maximum(highest, tl.max(bits, 0))
    return highest != 0


# The compiler must not know that inputs are aligned, or a lane would load four hidden units.
@triton.jit(do_not_specialize=({*ANY, "d", "query_row", "key_row"} - {"width"}))
def sweep_kernel(
    query,
    query_row,
    query_panels,
    key,
    key_row,
    key_panels,
    key_tiles,
    weights,
    bounds,
    cu_seqlens_q,
    cu_seqlens_k,
    sequences,
    sizes,
    leads,
    band,
    run,
    ds,
    grad_query,
    query_rows,
    query_origin,
    grad_key,
    grad_weight,
    n,
    m,
    d,
    padded,
    window,
    width,
    query_parts,
    key_parts,
    key_copies,
    negative_slope,
    ACTIVATION: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    RI: tl.constexpr,
    LANES: tl.constexpr,
    CHUNKS: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Write grad_query [key_parts, leads, query_rows, d], from row query_origin on, and add to
    grad_key [key_copies, leads, m, d] and grad_weight [programs, 2, d]: the sums of ds r or ds f,
    and 1 if an input of a logistic activation is not 0. BI and BJ are the tiles of the ranges and
    of ds; query_row and key_row the strides of query and key. The parts of the keys are those of
    what a part of the queries sees.
    """
    ROWS: tl.constexpr = 4 * RI
    columns = tl.cdiv(d, LANES)
    pid = tl.program_id(0)
    t = pid % columns * LANES + tl.arange(0, LANES)
    inside = t < d
    part = pid // columns
    query_part = part % query_parts
    key_part = part // query_parts % key_parts
    item = part // query_parts // key_parts
    s = item % sequences
    b = item // sequences
    begin_q, rows, first_q = extent(cu_seqlens_q, s, n, BI)
    begin_k, count, first_k = extent(cu_seqlens_k, s, m, BJ)
    start, count = start_of(b, sizes, bounds), end_of(b, sizes, bounds, count)
    first_row = window
    last_row = window + tl.minimum(rows - window, width)
    if run is not None:
        first_row = tl.maximum(run.first // SCALE - first_q, 0) * BI
        last_row = tl.minimum((run.first // SCALE + run.tiles // SCALE - first_q) * BI, rows)
    blocks = tl.cdiv(tl.maximum(last_row - first_row, 0), ROWS)
    block_share = tl.cdiv(blocks, query_parts)
    part_row = first_row + query_part * block_share * ROWS
    part_end = tl.minimum(part_row + block_share * ROWS, last_row)
    begin = tl.maximum(first_key(band, part_row), start)
    tiles = tl.cdiv(end_key(band, part_end - 1, count), BJ)
    tile_share = tl.cdiv(tl.maximum(tiles - begin // BJ, 0), key_parts)

    query_at = matrix_of(b, sizes, query) + begin_q * query_row
    query_at += t.to(tl.int64)[None, :] * query.unit
    key_at = matrix_of(b, sizes, key) + begin_k * key_row
    key_at += t.to(tl.int64) * key.unit
    weights_at = vector_of(b, sizes, weights)
    factor = tl.load(weights_at + t, mask=inside, other=0.0) * tl.load(weights_at + padded + 1)
    if is_logistic(ACTIVATION):
        factor *= -gain(ACTIVATION)
    query_panel = lead_index(b, sizes, query_panels.strides) + first_q
    key_panel = lead_index(b, sizes, key_panels.strides) + first_k
    grad_query += ((wide(key_part) * leads + b) * query_rows + begin_q - query_origin) * d
    grad_key += ((wide(query_part % key_copies) * leads + b) * m + begin_k) * d + t
    row_length = width
    if run is None:
        ds += (wide(b) * key_tiles + first_k) * BJ * width
    else:
        row_length = BI
        ds += wide(b) * (run.tiles // SCALE) * (run.slots // SCALE) * BJ * BI

    first_tile = begin // BJ + key_part * tile_share
    last_tile = tl.minimum(first_tile + tile_share, tiles)
    key_size = 0.0
    if is_logistic(ACTIVATION):
        for tile in range(first_tile, last_tile):
            _, size = row_ranges(key_panels.ranges, key_panel + tile, d, CHUNKS)
            key_size = tl.maximum(key_size, size)
        some = _nonzero(query_at, query_row, part_row, part_end, inside, ROWS)
        first_read = tl.maximum(first_tile * BJ, start)
        last_key = tl.minimum(last_tile * BJ, count)
        some |= _nonzero(key_at[None, :], key_row, first_read, last_key, inside, ROWS)
        flags = grad_weight + (wide(part) * 2 + 1) * d + t
        flagged = tl.where(some, 1.0, tl.load(flags, mask=inside, other=0.0))
        tl.store(flags, flagged, mask=inside)

    # registers hold the rows of a block in the order of _four
    r = tl.arange(0, RI)[:, None]
    rr = tl.arange(0, ROWS)
    order = rr // (2 * RI) * (2 * RI) + rr % RI * 2 + rr // RI % 2
    dw = tl.zeros((LANES,), tl.float32)
    for block in range(
        query_part * block_share, tl.minimum((query_part + 1) * block_share, blocks)
    ):
        first = first_row + block * ROWS
        q = query_at + wide(first) * query_row
        there = rows - first
        at_block = ds + block * ROWS
        from_tile = first_tile
        to_tile = last_tile
        if run is not None:
            it = first // BI
            slot = (it + first_q - run.first // SCALE) * (run.slots // SCALE)
            slot -= first_key(band, it * BI) // BJ  # ds has room from this tile of keys on
            at_block = ds + wide(slot) * BJ * BI + first % BI
        if band is not None:
            from_tile = tl.maximum(first_tile, first_key(band, first) // BJ)
            last = tl.minimum(first + ROWS, rows) - 1
            to_tile = tl.minimum(last_tile, tl.cdiv(end_key(band, last, count), BJ))
        # even and odd rows of the two halves of a block
        q0 = _rows(q, 2 * r, query_row, there, inside)
        q1 = _rows(q, 2 * r + 1, query_row, there, inside)
        q2 = _rows(q, 2 * r + 2 * RI, query_row, there, inside)
        q3 = _rows(q, 2 * r + 2 * RI + 1, query_row, there, inside)
        dq = tl.zeros((ROWS, LANES), tl.float32)
        if is_logistic(ACTIVATION):
            panel = query_panel + first // BI
            query_high, query_size = row_ranges(query_panels.ranges, panel, d, CHUNKS)
            if tl.maximum(query_size, key_size) <= FACTORED:
                q0 = exp(q0 * gain(ACTIVATION))
                q1 = exp(q1 * gain(ACTIVATION))
                q2 = exp(q2 * gain(ACTIVATION))
                q3 = exp(q3 * gain(ACTIVATION))
                for tile in range(from_tile, to_tile):
                    key_high, _ = row_ranges(key_panels.ranges, key_panel + tile, d, CHUNKS)
                    if tl.max(query_high + key_high) <= PAIR:
                        dq, dw = _sweep_tile(
                            q0, q1, q2, q3, key_at, key_row, at_block, row_length, grad_key,
                            factor, tile * BJ, start, count, dq, dw, d, inside, negative_slope,
                            ACTIVATION, True, True, RI, BJ, TARGET,
                        )  # fmt: skip
                    else:
                        dq, dw = _sweep_tile(
                            q0, q1, q2, q3, key_at, key_row, at_block, row_length, grad_key,
                            factor, tile * BJ, start, count, dq, dw, d, inside, negative_slope,
                            ACTIVATION, True, False, RI, BJ, TARGET,
                        )  # fmt: skip
            else:
                for tile in range(from_tile, to_tile):
                    dq, dw = _sweep_tile(
                        q0, q1, q2, q3, key_at, key_row, at_block, row_length, grad_key, factor,
                        tile * BJ, start, count, dq, dw, d, inside, negative_slope, ACTIVATION,
                        False, False, RI, BJ, TARGET,
                    )  # fmt: skip
        else:
            for tile in range(from_tile, to_tile):
                dq, dw = _sweep_tile(
                    q0, q1, q2, q3, key_at, key_row, at_block, row_length, grad_key, factor,
                    tile * BJ, start, count, dq, dw, d, inside, negative_slope, ACTIVATION, False,
                    False, RI, BJ, TARGET,
                )  # fmt: skip
        # from the row on: offsets from the block's would stay in registers throughout
        at = (first + order).to(tl.int64)[:, None] * d + t[None, :]
        mask = (order < there)[:, None] & inside[None, :]
        tl.store(grad_query + at, weighted(dq, factor[None, :]), mask=mask)
    at = grad_weight + wide(part) * 2 * d + t
    tl.store(at, tl.load(at, mask=inside, other=0.0) + dw, mask=inside)
