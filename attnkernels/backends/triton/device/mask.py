"""The pairs that take part, and those that dropout keeps: (E2), and docs/math.md, "Dropout"."""

import triton
import triton.language as tl

from .rows import SCALE, vector_of

NONE = tl.constexpr(0)
BOOL = tl.constexpr(1)
FLOAT = tl.constexpr(2)


@triton.jit
def mask_of(b, sizes, mask):
    """Return a pointer to the mask of leading index b, or 0 if there is no mask."""
    if mask is None:
        return 0
    else:
        return vector_of(b, sizes, mask)


@triton.jit
def first_key(band, i):
    """Return the first key that query i and those after it see, which may lie beyond the keys."""
    if band is None:
        return 0
    else:
        return tl.maximum(i - band.left // SCALE, 0)


@triton.jit
def end_key(band, i, m):
    """Return the end of the keys, of m, that query i and those before it see."""
    if band is None:
        return m
    else:
        return i + 1 + tl.minimum(band.right // SCALE, m - 1 - i)


@triton.jit
def seeing_queries(band, tile, m, n, BJ: tl.constexpr):
    """Return the first query, of n, that sees a tile of BJ keys, of m, and their end, or 0."""
    first = tl.maximum(tile * BJ - band.right // SCALE, 0)
    last = tl.minimum(tile * BJ + BJ, m) - 1
    end = last + 1 + tl.minimum(band.left // SCALE, n - 1 - last)
    return first, tl.where((tile * BJ < m) & (first < end), end, 0)


@triton.jit
def taking_part(i, j, n, start, m, mask, mask_at, band, MASK: tl.constexpr):
    """Return (bool: the pairs that nothing excludes, float32: the numbers added to their scores).

    i and j broadcast to the shape of the pairs. The keys go from start to m, which follow
    key_starts and key_lengths if given. mask_at: from mask_of().
    """
    there = (i < n) & (j >= start) & (j < m)
    if band is not None:
        there = there & (j - i <= band.right // SCALE) & (i - j <= band.left // SCALE)
    added = 0.0
    if MASK != NONE:
        at = mask_at + i.to(tl.int64) * mask.row + j.to(tl.int64) * mask.unit
        if MASK == BOOL:
            there = there & (tl.load(at, mask=there, other=0) != 0)
        else:
            added = tl.load(at, mask=there, other=0.0).to(tl.float32)
            there = there & (added != -float("inf"))
    return there, added


@triton.jit
def any_takes_part(i, j, n, start, m, mask, mask_at, band, MASK: tl.constexpr):
    """Return True if a tile must be computed. Without a mask its corners decide."""
    if MASK == NONE:
        first = tl.min(tl.ravel(j))
        some = (first < m) & (tl.max(tl.ravel(j)) >= start)
        if band is not None:
            some = some & (first - tl.max(tl.ravel(i)) <= band.right // SCALE)
            some = some & (tl.min(tl.ravel(i)) - tl.max(tl.ravel(j)) <= band.left // SCALE)
    else:
        takes, _ = taking_part(i, j, n, start, m, mask, mask_at, band, MASK)
        some = tl.max(tl.ravel(takes.to(tl.int32))) > 0
    return some


@triton.jit
def random_words(dropout, group, i, b):
    """Return four words of random bits, those of the pairs (b, i, 4 group) to (b, i, 4 group + 3):
    ops/dropout.py.
    """
    if dropout.first is not None:
        i += tl.load(dropout.first).to(tl.int32)
        group += (tl.load(dropout.first + 1) // 4).to(tl.int32)
    zero = (i + group) * 0
    b = b.to(tl.int64)
    return tl.philox(
        tl.load(dropout.seed),
        (group + zero).to(tl.uint32),
        (i + zero).to(tl.uint32),
        ((b & 0xFFFFFFFF) + zero).to(tl.uint32),
        ((b >> 32) + zero).to(tl.uint32),
    )


@triton.jit
def are_kept(dropout, bits):
    """Return True for bits at the threshold or above."""
    return bits.to(tl.int64) >= dropout.threshold // SCALE


@triton.jit
def kept(dropout, i, j, b):
    """Return the pairs (b, i, j) that dropout keeps."""
    r0, r1, r2, r3 = random_words(dropout, j // 4, i, b)
    lane = j % 4 + i * 0
    return are_kept(
        dropout, tl.where(lane == 0, r0, tl.where(lane == 1, r1, tl.where(lane == 2, r2, r3)))
    )
