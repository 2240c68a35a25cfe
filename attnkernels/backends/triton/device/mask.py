"""What takes part, and what dropout keeps: (E2), and docs/math.md, "Dropout"."""

import triton
import triton.language as tl

NONE = tl.constexpr(0)
BOOL = tl.constexpr(1)
FLOAT = tl.constexpr(2)


@triton.jit
def taking_part(
    i,
    j,
    n,
    m,
    mask,
    mask_row,
    mask_column,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
):
    """(bool: the pairs that nothing excludes, float32: what is added to their scores).

    i and j broadcast to the shape of the pairs. m is the end of the keys, by key_lengths where they
    are given.
    """
    there = (i < n) & (j < m)
    if CAUSAL:
        there = there & (j <= i)
    added = 0.0
    if MASK != NONE:
        at = i.to(tl.int64) * mask_row + j.to(tl.int64) * mask_column
        if MASK == BOOL:
            there = there & (tl.load(mask + at, mask=there, other=0) != 0)
        else:
            added = tl.load(mask + at, mask=there, other=0.0).to(tl.float32)
            there = there & (added != -float("inf"))
    return there, added


@triton.jit
def any_takes_part(
    i,
    j,
    n,
    m,
    mask,
    mask_row,
    mask_column,
    CAUSAL: tl.constexpr,
    MASK: tl.constexpr,
):
    """Whether a tile has to be computed. Without a mask its corner tells."""
    if MASK == NONE:
        last = tl.max(tl.ravel(i))
        first = tl.min(tl.ravel(j))
        some = first < m
        if CAUSAL:
            some = some & (first <= last)
    else:
        takes, _ = taking_part(i, j, n, m, mask, mask_row, mask_column, CAUSAL, MASK)
        some = tl.max(tl.ravel(takes.to(tl.int32))) > 0
    return some


@triton.jit
def kept(seed, i, j, b, threshold):
    """bool: bits of pair (b, i, j), drawn as in backends/philox.py, at or above threshold."""
    zero = (i + j) * 0
    b = b.to(tl.int64)
    r0, r1, r2, r3 = tl.philox(
        tl.load(seed),
        (j // 4 + zero).to(tl.uint32),
        (i + zero).to(tl.uint32),
        ((b & 0xFFFFFFFF) + zero).to(tl.uint32),
        ((b >> 32) + zero).to(tl.uint32),
    )
    lane = j % 4 + zero
    bits = tl.where(lane == 0, r0, tl.where(lane == 1, r1, tl.where(lane == 2, r2, r3)))
    return bits.to(tl.int64) >= threshold
