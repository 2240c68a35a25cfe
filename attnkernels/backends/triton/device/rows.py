"""Arguments of kernels, and where their rows are: leading indices, tiles, packed sequences.

An argument that a call lacks is None, and a kernel is compiled without it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Matrix(NamedTuple):
    """Rows of an input. Strides count elements; `strides` are those over the leading dimensions."""

    data: Any
    strides: Any
    row: Any
    unit: Any


class Vector(NamedTuple):
    """One row, or one number, per leading index; strides over these are multiplied by SCALE."""

    data: Any
    strides: Any
    unit: Any = 1


class Bounds(NamedTuple):
    """The keys that take part: a Vector of the first ones, and one of their ends; or None."""

    starts: Any
    ends: Any


class Panels(NamedTuple):
    """Tiles of rows as prepare.py leaves them; strides count tiles and are multiplied by SCALE."""

    data: Any
    ranges: Any
    strides: Any


class Dropout(NamedTuple):
    """The seed; the threshold, of 2^32, below which bits drop a pair, times SCALE; 1 / (1 - p).

    For a block of a larger problem, also the places of its first query and key in that.
    """

    seed: Any
    threshold: Any
    keep_scale: Any
    first: Any = None


class Band(NamedTuple):
    """The window of a call: query i sees the keys from i - left to i + right; times SCALE."""

    left: Any
    right: Any


class Run(NamedTuple):
    """Tiles of queries with room for the tiles of keys that each sees; times SCALE.

    The first one, counted over all sequences; their number; and the tiles of keys of each.
    """

    first: Any
    tiles: Any
    slots: Any


class Kept(NamedTuple):
    """A byte per edge, in the order by target, and head: 1 if dropout keeps it; 1 / (1 - p)."""

    data: Any
    scale: Any


class Outer(NamedTuple):
    """The given terms of (E4); those that are absent are None.

    The softmax of the rows, and lse in its absence; the weights, if they need not be computed; D_i;
    the context; D_i's sum over the weights; the gradients of context, weights and lse.
    """

    softmax: Any
    lse: Any
    given: Any
    delta: Any
    context: Any
    weights: Any
    grad_context: Any
    grad_weights: Any
    grad_lse: Any


class Tangents(NamedTuple):
    """Those of the inputs, as prepared; value and mask may be None. Strides are over `sizes`."""

    sizes: Any
    query_panels: Any
    key_panels: Any
    weights: Any
    value: Any
    mask: Any


# Integers for which a kernel gains nothing from specialisation on 1 or on multiples of 16: compiled
# once for all values.
ANY = (
    "n",
    "m",
    "padded",
    "leads",
    "sequences",
    "splits",
    "parts",
    "rows",
    "window",
    "width",
    "window_tiles",
    "query_tiles",
    "query_programs",
    "query_rows",
    "query_origin",
    "query_parts",
    "key_tiles",
    "key_programs",
    "key_parts",
    "key_copies",
)


@triton.jit
def program_index(first, second):
    """Return the indices of this program in a grid (first, second, any), the first innermost."""
    pid = tl.program_id(0)
    return pid % first, pid // first % second, pid // first // second


# Triton recompiles a kernel whenever an integer of a tuple becomes 1, or a multiple of 16, or
# neither. Sizes and strides are therefore multiplied by 16, except the strides of query, key and
# value: whether these are multiples of 16 decides how their rows are loaded.
SCALE = tl.constexpr(16)


@triton.jit
def lead_offset(b, sizes, strides):
    """Return the offset of leading index b; the innermost dimension comes first."""
    offset = b.to(tl.int64) * 0
    for r in tl.static_range(len(sizes)):
        size = sizes[r] // SCALE
        offset += (b % size).to(tl.int64) * strides[r]
        b = b // size
    return offset


@triton.jit
def lead_index(b, sizes, strides):
    """Return the same from strides that are multiplied by SCALE."""
    return lead_offset(b, sizes, strides) // SCALE


@triton.jit
def matrix_of(b, sizes, x):
    """Return a pointer to the first row of leading index b in a Matrix."""
    return x.data + lead_offset(b, sizes, x.strides)


@triton.jit
def vector_of(b, sizes, x):
    """Return a pointer to the first element of leading index b in a Vector."""
    return x.data + lead_index(b, sizes, x.strides)


@triton.jit
def position_of(b, sizes, positions, absent):
    """Return the position for leading index b, int32, or `absent` if positions is None."""
    if positions is None:
        return absent
    else:
        return tl.load(vector_of(b, sizes, positions)).to(tl.int32)


@triton.jit
def start_of(b, sizes, bounds):
    """Return the first key that takes part for leading index b, int32."""
    if bounds is None:
        return 0
    else:
        return position_of(b, sizes, bounds.starts, 0)


@triton.jit
def end_of(b, sizes, bounds, m):
    """Return the end of the keys, of m, that take part for leading index b, int32."""
    if bounds is None:
        return m
    else:
        return position_of(b, sizes, bounds.ends, m)


@triton.jit
def sequence_of(cu_seqlens, sequences, tile, BLOCK: tl.constexpr):
    """Return the sequence that a tile of BLOCK rows belongs to; 0 if cu_seqlens is None.

    Sequence s owns the tiles from cu_seqlens[s] // BLOCK + s on. These are enough wherever it
    starts, so the number of tiles is known without reading cu_seqlens.
    """
    low = 0
    if cu_seqlens is not None:
        high = sequences
        while high - low > 1:
            middle = (low + high) // 2
            if tl.load(cu_seqlens + middle) // BLOCK + middle <= tile:
                low = middle
            else:
                high = middle
    return low


@triton.jit
def extent(cu_seqlens, s, rows, BLOCK: tl.constexpr):
    """Return (first row, number of rows, first tile) of sequence s; None is one of all rows.

    The first row has 64 bits, so that products with it do.
    """
    if cu_seqlens is None:
        begin = tl.full((), 0, tl.int64)
        count = rows
        first = 0
    else:
        begin = tl.load(cu_seqlens + s).to(tl.int64)
        count = (tl.load(cu_seqlens + s + 1).to(tl.int64) - begin).to(tl.int32)
        first = (begin // BLOCK).to(tl.int32) + s
    return begin, count, first


@triton.jit
def wide(x):
    """Return the integer x with 64 bits."""
    return tl.full((), 0, tl.int64) + x
