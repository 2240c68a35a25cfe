"""The edges that dropout keeps: docs/math.md, "Dropout".

Several threads share a head in a pass over edges, which takes an edge at a time: each would draw
four numbers to use one. So they are drawn before, and kept as a byte per edge and head.
"""

import triton
import triton.language as tl

from .edges import ANY_EDGES, heads_of
from .mask import are_kept, random_words
from .rows import program_index, wide


@triton.jit
def _put(kept, dropout, bits, edge, edges, b, heads, leads):
    there = (edge < edges) & heads
    tl.store(kept.data + edge * leads + b, are_kept(dropout, bits).to(tl.uint8), mask=there)


@triton.jit(do_not_specialize=ANY_EDGES)
def edge_dropout_kernel(
    dropout, kept, edges, leads, head_blocks, BH: tl.constexpr, BE: tl.constexpr
):
    """Program (four times BE edges, block of heads): 1 or 0 in kept, [edges by target, leads]."""
    block, _, program = program_index(head_blocks, 1)
    b, heads = heads_of(block, leads, BH)
    b, heads = b[None, :], heads[None, :]
    group = wide(program) * BE + tl.arange(0, BE)[:, None]
    r0, r1, r2, r3 = random_words(dropout, group, 0, b)
    _put(kept, dropout, r0, group * 4, edges, b, heads, leads)
    _put(kept, dropout, r1, group * 4 + 1, edges, b, heads, leads)
    _put(kept, dropout, r2, group * 4 + 2, edges, b, heads, leads)
    _put(kept, dropout, r3, group * 4 + 3, edges, b, heads, leads)


@triton.jit
def kept_at(kept, edge, b, leads, there):
    """Return bool [BH, BE]: the edges, by their place in the order by target, that are kept."""
    at = kept.data + (edge * leads)[None, :] + b[:, None]
    return tl.load(at, mask=there, other=0) != 0
