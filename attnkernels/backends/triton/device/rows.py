"""Where things are: leading indices, tiles of rows, sequences packed one after another."""

import triton
import triton.language as tl

# Integers that no kernel gains from knowing to be 1 or a multiple of 16: compiled once for all.
ANY = (
    "n",
    "m",
    "padded",
    "leads",
    "sizes",
    "sequences",
    "splits",
    "parts",
    "rows",
    "window",
    "width",
    "window_tiles",
    "query_tiles",
    "query_programs",
    "query_sizes",
    "query_strides",
    "query_panel_strides",
    "query_rows",
    "query_origin",
    "query_parts",
    "key_tiles",
    "key_programs",
    "key_sizes",
    "key_strides",
    "key_panel_strides",
    "key_parts",
    "value_strides",
    "weight_sizes",
    "weight_strides",
    "mask_strides",
    "length_strides",
    "threshold",
)


# Triton compiles a kernel anew where an integer of a tuple is 1, or is or is not a multiple of 16.
# So sizes come multiplied by 16, and so do strides; but for those of the inputs that are read by
# rows, which the compiler does well to know to be aligned.
SCALE = tl.constexpr(16)


@triton.jit
def lead_offset(b, sizes, strides):
    """The offset of leading index b, whose dimensions are given innermost first."""
    offset = b.to(tl.int64) * 0
    for r in tl.static_range(len(sizes)):
        size = sizes[r] // SCALE
        offset += (b % size).to(tl.int64) * strides[r]
        b = b // size
    return offset


@triton.jit
def lead_index(b, sizes, strides):
    """The same from strides multiplied by SCALE."""
    return lead_offset(b, sizes, strides) // SCALE


@triton.jit
def sequence_of(cu_seqlens, sequences, tile, BLOCK: tl.constexpr):
    """The sequence that a tile of BLOCK rows belongs to.

    Sequence s owns the tiles from cu_seqlens[s] // BLOCK + s on. That leaves it enough of them
    wherever it starts, so that the number of all tiles is known without reading cu_seqlens.
    """
    low = 0
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(cu_seqlens + middle) // BLOCK + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def extent(cu_seqlens, s, rows, BLOCK: tl.constexpr, VARLEN: tl.constexpr):
    """(first row, number of rows, first tile) of sequence s; without VARLEN there is one.

    The first row is 64 bits wide, so that products with it are.
    """
    if VARLEN:
        begin = tl.load(cu_seqlens + s).to(tl.int64)
        count = (tl.load(cu_seqlens + s + 1).to(tl.int64) - begin).to(tl.int32)
        first = (begin // BLOCK).to(tl.int32) + s
    else:
        begin = tl.full((), 0, tl.int64)
        count = rows
        first = 0
    return begin, count, first


@triton.jit
def wide(x):
    """x, an integer, with 64 bits."""
    return tl.full((), 0, tl.int64) + x
