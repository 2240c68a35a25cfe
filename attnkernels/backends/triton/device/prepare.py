"""The operands of scores: panels of queries and keys with their ranges, and weights.

A panel is a transposed tile of BLOCK rows: for every two hidden units, BLOCK pairs of float32. A
thread reads two hidden units of a row with one 64-bit load, always the same distance on. A panel
holds exp(gain * x), (E7). Where float32 cannot hold that, the range beside the panel says so and
scores are computed from the inputs. For a pointwise activation, and for tangents, it holds
gain * x. Sines, (E14), need the ranges alone: then there are no panels.
"""

import triton
import triton.language as tl

from .maths import exp, gain, is_logistic, span
from .rows import ANY, end_of, extent, matrix_of, sequence_of, start_of, vector_of, wide

CHUNK = tl.constexpr(64)  # hidden units of one program
RANGES = tl.constexpr(3)  # numbers for each: the largest exponent, the largest size, the smallest
WEIGHT_TAIL = tl.constexpr(4)  # behind the weights of a leading index: base, unit, and two unused


@triton.jit
def row_ranges(ranges, panel, d, CHUNKS: tl.constexpr):
    """Return (the largest exponents of each chunk, the largest absolute exponent) of a panel."""
    chunks = tl.cdiv(d, CHUNK)
    c = tl.arange(0, CHUNKS)
    at = ranges + (panel * chunks + c) * RANGES
    highest = tl.load(at, mask=c < chunks, other=-float("inf"))
    return highest, tl.max(tl.load(at + 1, mask=c < chunks, other=0.0))


@triton.jit
def _panel(
    pid,
    x,
    sizes,
    rows,
    cu_seqlens,
    sequences,
    bounds,
    panels,
    tiles,
    d,
    padded,
    ACTIVATION: tl.constexpr,
    EXPONENTIALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Prepare one tile and CHUNK hidden units. Rows past the end, and padding, count as 0."""
    chunks = tl.cdiv(d, CHUNK)
    chunk = pid % chunks
    tile = pid // chunks % tiles
    b = pid // chunks // tiles
    s = sequence_of(cu_seqlens, sequences, tile, BLOCK)
    begin, count, first = extent(cu_seqlens, s, rows, BLOCK)
    start, count = start_of(b, sizes, bounds), end_of(b, sizes, bounds, count)
    row0 = (tile - first) * BLOCK
    if (row0 < count) & (row0 + BLOCK > start):  # other tiles are not read
        row = row0 + tl.arange(0, BLOCK)
        t = chunk * CHUNK + tl.arange(0, CHUNK)
        there = ((row >= start) & (row < count))[:, None] & (t < d)[None, :]
        at = (begin + row)[:, None] * x.row + t.to(tl.int64)[None, :] * x.unit
        y = tl.load(matrix_of(b, sizes, x) + at, mask=there, other=0.0).to(tl.float32)
        panel = wide(b) * tiles + tile
        if is_logistic(ACTIVATION):
            y *= gain(ACTIVATION)
            ranges = panels.ranges + (panel * chunks + chunk) * RANGES
            tl.store(ranges, tl.max(y))
            # NaN counts as infinite: if queries share a reciprocal, it would reach its neighbour
            size = tl.where(y == y, tl.abs(y), float("inf"))
            tl.store(ranges + 1, tl.max(size))
            tl.store(ranges + 2, tl.min(y))
            if EXPONENTIALS:
                y = exp(y)
        if panels.data is not None:
            pairs = tl.permute(tl.reshape(tl.trans(y), (CHUNK // 2, 2, BLOCK)), (0, 2, 1))
            at = chunk * CHUNK * BLOCK + tl.arange(0, CHUNK * BLOCK)
            data = panels.data + panel * padded * BLOCK
            tl.store(data + at, tl.reshape(pairs, (CHUNK * BLOCK,)), mask=at < padded * BLOCK)


@triton.jit
def _weights(b, x, sizes, weights, d, padded, scale, ACTIVATION: tl.constexpr):
    """Store w' and (base, unit) such that a score is base + unit * sum_t w'_t g_t.

    g is r - 1/2 for a logistic activation, with r = 1 / x of (E7), and f for a pointwise one. The
    unit is the largest |w'|, so that products with w' overflow no sooner than products without.
    """
    x_at = vector_of(b, sizes, x)
    weights += wide(b) * (padded + WEIGHT_TAIL)
    largest = 0.0
    base = 0.0
    factor = scale
    if is_logistic(ACTIVATION):
        factor = scale * -span(ACTIVATION)
    for t0 in range(0, d, CHUNK):
        t = t0 + tl.arange(0, CHUNK)
        w = tl.load(x_at + t.to(tl.int64) * x.unit, mask=t < d, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(w * factor)))
        base += tl.sum(w * scale)
    unit = tl.where(largest == 0.0, 1.0, largest)
    for t0 in range(0, padded, CHUNK):
        t = t0 + tl.arange(0, CHUNK)
        w = tl.load(x_at + t.to(tl.int64) * x.unit, mask=t < d, other=0.0).to(tl.float32)
        tl.store(weights + t, w * factor / unit, mask=t < padded)
    if is_logistic(ACTIVATION):
        tl.store(weights + padded, base * (1.0 - span(ACTIVATION) / 2))
    else:
        tl.store(weights + padded, 0.0)
    tl.store(weights + padded + 1, unit)


@triton.jit(do_not_specialize=ANY)
def prepare_kernel(
    query,
    query_sizes,
    query_panels,
    query_tiles,
    query_programs,
    key,
    key_sizes,
    key_panels,
    key_tiles,
    key_programs,
    weight,
    weight_sizes,
    weights,
    bounds,
    cu_seqlens_q,
    cu_seqlens_k,
    sequences,
    n,
    m,
    d,
    padded,
    scale,
    ACTIVATION: tl.constexpr,
    EXPONENTIALS: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
):
    """Programs for the panels of the queries, then of the keys, then for the weights.

    Each input has its own leading dimensions here: it is prepared once, however it broadcasts.
    """
    pid = tl.program_id(0)
    if pid < query_programs:
        _panel(
            pid, query, query_sizes, n, cu_seqlens_q, sequences, None, query_panels, query_tiles, d,
            padded, ACTIVATION, EXPONENTIALS, BI,
        )  # fmt: skip
    elif pid < query_programs + key_programs:
        _panel(
            pid - query_programs, key, key_sizes, m, cu_seqlens_k, sequences, bounds, key_panels,
            key_tiles, d, padded, ACTIVATION, EXPONENTIALS, BJ,
        )  # fmt: skip
    else:
        b = pid - query_programs - key_programs
        _weights(b, weight, weight_sizes, weights.data, d, padded, scale, ACTIVATION)
