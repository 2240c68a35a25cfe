"""What scores are computed from: panels of queries and keys with their ranges, and weights.

A panel is a tile of BLOCK rows, transposed: for every two hidden units, BLOCK pairs of float32, so
that a thread reads two hidden units of a row with one 64-bit load, always the same distance on. It
holds exp(gain * x), (E7). Where that has no place in float32, the range beside the panel says so
and scores go back to the inputs. For a pointwise activation it holds x.
"""

import triton
import triton.language as tl

from .maths import exp, gain, is_logistic, span
from .rows import ANY, extent, lead_index, lead_offset, sequence_of, wide

CHUNK = tl.constexpr(64)  # hidden units of one program
WEIGHT_TAIL = tl.constexpr(4)  # behind the weights of a leading index: base, unit, two unused


@triton.jit
def _panel(
    pid,
    x,
    sizes,
    strides,
    row_stride,
    unit_stride,
    rows,
    cu_seqlens,
    sequences,
    lengths,
    length_strides,
    panels,
    ranges,
    tiles,
    d,
    padded,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    VARLEN: tl.constexpr,
    LENGTHS: tl.constexpr,
):
    """One tile and CHUNK hidden units. Rows that are not there, and key padding, count as 0."""
    chunks = tl.cdiv(d, CHUNK)
    chunk = pid % chunks
    tile = pid // chunks % tiles
    b = pid // chunks // tiles
    s = 0
    if VARLEN:
        s = sequence_of(cu_seqlens, sequences, tile, BLOCK)
    begin, count, first = extent(cu_seqlens, s, rows, BLOCK, VARLEN)
    if LENGTHS:
        count = tl.load(lengths + lead_index(b, sizes, length_strides)).to(tl.int32)

    row = (tile - first) * BLOCK + tl.arange(0, BLOCK)
    t = chunk * CHUNK + tl.arange(0, CHUNK)
    there = (row < count)[:, None] & (t < d)[None, :]
    at = (begin + row)[:, None] * row_stride + t.to(tl.int64)[None, :] * unit_stride
    x += lead_offset(b, sizes, strides)
    y = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    panel = wide(b) * tiles + tile
    if is_logistic(ACTIVATION):
        y *= gain(ACTIVATION)
        tl.store(ranges + (panel * chunks + chunk) * 2, tl.max(y))
        # NaN counts as infinite: where queries share a reciprocal it would reach its neighbour
        size = tl.where(y == y, tl.abs(y), float("inf"))
        tl.store(ranges + (panel * chunks + chunk) * 2 + 1, tl.max(size))
        y = exp(y)
    pairs = tl.permute(tl.reshape(tl.trans(y), (CHUNK // 2, 2, BLOCK)), (0, 2, 1))
    at = chunk * CHUNK * BLOCK + tl.arange(0, CHUNK * BLOCK)
    panels += panel * padded * BLOCK
    tl.store(panels + at, tl.reshape(pairs, (CHUNK * BLOCK,)), mask=at < padded * BLOCK)


@triton.jit
def _weights(
    b, x, sizes, strides, unit_stride, weights, d, padded, scale, ACTIVATION: tl.constexpr
):
    """w' and (base, unit) such that a score is base + unit * sum_t w'_t g_t.

    g is r = 1 / x of (E7) where there is one, otherwise the activation itself. The unit is the
    largest |w'|, so that products with w' overflow no sooner than those without.
    """
    x += lead_index(b, sizes, strides)
    weights += wide(b) * (padded + WEIGHT_TAIL)
    largest = 0.0
    base = 0.0
    factor = scale
    if is_logistic(ACTIVATION):
        factor = scale * -span(ACTIVATION)
    for t0 in range(0, d, CHUNK):
        t = t0 + tl.arange(0, CHUNK)
        w = tl.load(x + t.to(tl.int64) * unit_stride, mask=t < d, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(w * factor)))
        base += tl.sum(w * scale)
    unit = tl.where(largest == 0.0, 1.0, largest)
    for t0 in range(0, padded, CHUNK):
        t = t0 + tl.arange(0, CHUNK)
        w = tl.load(x + t.to(tl.int64) * unit_stride, mask=t < d, other=0.0).to(tl.float32)
        tl.store(weights + t, w * factor / unit, mask=t < padded)
    if is_logistic(ACTIVATION):
        tl.store(weights + padded, base)
    else:
        tl.store(weights + padded, 0.0)
    tl.store(weights + padded + 1, unit)


@triton.jit(do_not_specialize=ANY)
def prepare_kernel(
    query,
    query_sizes,
    query_strides,
    query_row,
    query_unit,
    query_panels,
    query_ranges,
    query_tiles,
    query_programs,
    key,
    key_sizes,
    key_strides,
    key_row,
    key_unit,
    key_panels,
    key_ranges,
    key_tiles,
    key_programs,
    weight,
    weight_sizes,
    weight_strides,
    weight_unit,
    weights,
    lengths,
    length_strides,
    cu_seqlens_q,
    cu_seqlens_k,
    sequences,
    n,
    m,
    d,
    padded,
    scale,
    ACTIVATION: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    VARLEN: tl.constexpr,
    LENGTHS: tl.constexpr,
):
    """Programs for the panels of the queries, then of the keys, then for the weights."""
    pid = tl.program_id(0)
    if pid < query_programs:
        _panel(
            pid,
            query,
            query_sizes,
            query_strides,
            query_row,
            query_unit,
            n,
            cu_seqlens_q,
            sequences,
            lengths,
            length_strides,
            query_panels,
            query_ranges,
            query_tiles,
            d,
            padded,
            ACTIVATION,
            BI,
            VARLEN,
            False,
        )
    elif pid < query_programs + key_programs:
        _panel(
            pid - query_programs,
            key,
            key_sizes,
            key_strides,
            key_row,
            key_unit,
            m,
            cu_seqlens_k,
            sequences,
            lengths,
            length_strides,
            key_panels,
            key_ranges,
            key_tiles,
            d,
            padded,
            ACTIVATION,
            BJ,
            VARLEN,
            LENGTHS,
        )
    else:
        _weights(
            pid - query_programs - key_programs,
            weight,
            weight_sizes,
            weight_strides,
            weight_unit,
            weights,
            d,
            padded,
            scale,
            ACTIVATION,
        )
