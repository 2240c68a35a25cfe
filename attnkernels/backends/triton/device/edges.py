"""Attention over edges: the work of a program, and the rows at the ends of its edges.

A program has a block of heads (leading indices that lie next to each other) and an equal share of
the work, however many edges a node has. Rows of BH heads and BE edges are tiles [BH, BE, columns].
Every one of the BE places has sums of its own until a node is finished, so that a pass over a block
of edges exchanges nothing but sums over columns.

A node whose edges are shared by several programs is cut: each leaves a part, and another kernel
puts them together in their order. The part of the node that program p finds begun is 2 p, that of
the node which it begins and does not finish 2 p + 1.
"""

import triton
import triton.language as tl

from .maths import activated
from .rows import matrix_of, vector_of, wide

SIGNS = tl.constexpr(8)  # of a byte

# Not specialised: see rows.ANY.
ANY_EDGES = ("n", "edges", "leads", "share", "head_blocks", "columns")


@triton.jit
def node_of(begin, n, unit):
    """Return the node that a unit of work belongs to, int64.

    Node i has the units begin[i] + i to begin[i + 1] + i: one per edge and one to finish it
    (Merrill and Garland, Merge-based parallel sparse matrix-vector multiplication, SC 2016).
    """
    low = wide(0)
    high = wide(n)
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(begin + middle) + middle <= unit:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def share_of(begin, n, edges, program, share):
    """Return (first node, its first edge here, end of its edges, end of the units, the first node
    again if another program begins it, or -1).
    """
    unit = wide(program) * share
    i = node_of(begin, n, unit)
    e = unit - i
    cut = tl.where(e > tl.load(begin + i), i, -1)
    return i, e, tl.load(begin + i + 1), tl.minimum(unit + share, wide(edges) + n), cut


@triton.jit
def note_cut(cuts, program, share, i, cut, finish, stop):
    """Store the last node of a program and its number of parts: 0 if another program begins it, or
    this one finishes it. `finish`: the last unit of the node.
    """
    mine = (finish >= stop) & (i != cut)
    tl.store(cuts + 2 * program, i)
    tl.store(cuts + 2 * program + 1, tl.where(mine, finish // share - program + 1, 0))


@triton.jit
def parts_of(program, first, BE: tl.constexpr):
    """Return the places of the parts `first` to first + BE of the node that is cut at the end."""
    k = wide(program) + first + tl.arange(0, BE)
    return tl.where(k == program, 2 * k + 1, 2 * k)


@triton.jit
def heads_of(block, leads, BH: tl.constexpr):
    """Return (the leading indices of a block of heads, bool: those that exist)."""
    b = block * BH + tl.arange(0, BH)
    return b, b < leads


@triton.jit
def places_from(e, end, heads, BE: tl.constexpr):
    """Return (the edges from e on, [BE]; bool [BH, BE]: those before `end`, for all heads)."""
    at = e + tl.arange(0, BE)
    return at, heads[:, None] & (at < end)[None, :]


@triton.jit
def ends_from(ends, e, edges, BE: tl.constexpr):
    """Return the nodes at the other ends of the edges from e on, [BE]."""
    at = e + tl.arange(0, BE)
    return tl.load(ends + at, mask=at < edges, other=0)


@triton.jit
def rows_at(base, row, index, there, columns, first, B: tl.constexpr):
    """Return float32 [BH, BE, B]: columns from `first` on of the rows `index`; 0 where none is.

    base: [BH], the first row of every head.
    """
    t = first + tl.arange(0, B)
    at = base[:, None, None] + (index * row)[None, :, None] + t[None, None, :]
    inside = there[:, :, None] & (t < columns)[None, None, :]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def row_at(base, row, index, heads, columns, first, B: tl.constexpr):
    """Return float32 [BH, 1, B], the row `index` of every head."""
    return rows_at(base, row, index + tl.arange(0, 1), heads[:, None], columns, first, B)


@triton.jit
def weights_at(base, unit, heads, d, first, B: tl.constexpr):
    """Return float32 [BH, 1, B], elements of the weights of every head."""
    t = first + tl.arange(0, B)
    at = base[:, None] + (t * unit)[None, :]
    w = tl.load(at, mask=heads[:, None] & (t < d)[None, :], other=0.0)
    return w.to(tl.float32)[:, None, :]


@triton.jit
def numbers_at(base, unit, index, there, other: tl.constexpr):
    """Return float32 [BH, BE]: the numbers `index` of every head.

    base: [BH], the first number of every head.
    """
    at = base[:, None] + (index * unit)[None, :]
    return tl.load(at, mask=there, other=other).to(tl.float32)


@triton.jit
def put_numbers(base, unit, index, there, numbers):
    """Store what numbers_at() reads."""
    tl.store(base[:, None] + (index * unit)[None, :], numbers, mask=there)


@triton.jit
def put_row(base, row, index, heads, columns, first, numbers):
    """Store [BH, B] as columns from `first` on of the row `index` of every head."""
    t = first + tl.arange(0, numbers.shape[1])
    at = (base + index * row)[:, None] + t[None, :]
    inside = heads[:, None] & (t < columns)[None, :]
    tl.store(at, numbers.to(base.dtype.element_ty), mask=inside)


@triton.jit
def put_rows(base, row, index, there, columns, first, numbers):
    """Store what rows_at() reads."""
    t = first + tl.arange(0, numbers.shape[2])
    at = base[:, None, None] + (index * row)[None, :, None] + t[None, None, :]
    inside = there[:, :, None] & (t < columns)[None, None, :]
    tl.store(at, numbers.to(base.dtype.element_ty), mask=inside)


@triton.jit
def put_part(part, place, b, leads, heads, columns, first, numbers):
    """Store [BH, B] as the part `place` of a node, in [places, leads, columns]."""
    base = part + (place * leads + b) * columns
    put_row(base, 0, 0, heads, columns, first, numbers)


@triton.jit
def put_state(at, high, total, there):
    """Store the state of a softmax: the maximum, and the sum of exp(s - maximum)."""
    tl.store(at, high, mask=there)
    tl.store(at + 1, total, mask=there)


@triton.jit
def state_at(at, there):
    """Return what put_state() stored, that of no edge where nothing is."""
    return tl.load(at, mask=there, other=-float("inf")), tl.load(at + 1, mask=there, other=0.0)


@triton.jit
def as_weights(at, there):
    """Return (h, u) of what put_state() stored: a score s has the weight exp(s - h) u.

    It is not exp(s - lse): lse is rounded, by as much as it is large.
    """
    high, total = state_at(at, there)
    none = total == 0.0
    return tl.where(none, 0.0, high), tl.where(none, 0.0, 1.0 / total)


@triton.jit
def included(bias_at, edge_bias, edge, there):
    """Return (bool [BH, BE]: the edges that are not excluded, their biases)."""
    if edge_bias is None:
        return there, 0.0
    else:
        bias = numbers_at(bias_at, edge_bias.unit, edge, there, -float("inf"))
        return bias != -float("inf"), bias


@triton.jit
def rows_or(b, sizes, x, other):
    """Return matrix_of() of a Matrix, or `other` without it."""
    if x is None:
        return other
    else:
        return matrix_of(b, sizes, x)


@triton.jit
def numbers_or(b, sizes, x, other):
    """Return vector_of() of a Vector, or `other` without it."""
    if x is None:
        return other
    else:
        return vector_of(b, sizes, x)


@triton.jit
def _at_signs(signs, edge, b, leads, width, first, B: tl.constexpr):
    byte = first // SIGNS + tl.arange(0, B // SIGNS)
    row = (edge * leads)[None, :] + b[:, None]
    return signs + (row * width)[:, :, None] + byte[None, None, :]


@triton.jit
def put_signs(signs, edge, b, leads, width, first, there, x):
    """Store which elements of [BH, BE, B] are positive, SIGNS to a byte, in [edges, leads, width].

    B is at least SIGNS.
    """
    some = tl.reshape((x > 0).to(tl.int32), (x.shape[0], x.shape[1], x.shape[2] // SIGNS, SIGNS))
    byte = tl.sum(some << tl.arange(0, SIGNS)[None, None, None, :], 3)
    at = _at_signs(signs, edge, b, leads, width, first, x.shape[2])
    tl.store(at, byte.to(tl.uint8), mask=there[:, :, None])


@triton.jit
def signs_at(signs, edge, b, leads, width, first, there, B: tl.constexpr):
    """Return bool [BH, BE, B] as put_signs() stored it."""
    at = _at_signs(signs, edge, b, leads, width, first, B)
    byte = tl.load(at, mask=there[:, :, None], other=0).to(tl.int32)
    some = (byte[:, :, :, None] >> tl.arange(0, SIGNS)[None, None, None, :]) & 1
    return tl.reshape(some, (there.shape[0], there.shape[1], B)) != 0


@triton.jit
def inside_at(
    query_row, key_at, key, nodes, edge_key_at, edge_key, edge, live, edge_bias, d, first,
    B: tl.constexpr,
):  # fmt: skip
    """Return (q + k + g of the columns from `first` on, k), float32 [BH, BE, B].

    Of an edge that is not `live` nothing is read; the sum is 0 where it could be the query's NaN.
    """
    k = rows_at(key_at, key.row, nodes, live, d, first, B)
    x = query_row + k
    if edge_key is not None:
        x += rows_at(edge_key_at, edge_key.row, edge, live, d, first, B)
    if edge_bias is not None:
        x = tl.where(live[:, :, None], x, 0.0)
    return x, k


@triton.jit
def sums_of(
    query_at, query, i, key_at, key, nodes, edge_key_at, edge_key, edge, weight_at, weight, heads,
    live, edge_bias, d, negative_slope, ACTIVATION: tl.constexpr, B: tl.constexpr,
    TARGET: tl.constexpr,
):  # fmt: skip
    """Return sum_t w_t f(q_t + k_t + g_t), [BH, BE], of rows longer than one block of columns."""
    s = tl.zeros(live.shape, tl.float32)
    for first in range(0, d, B):
        q = row_at(query_at, query.row, i, heads, d, first, B)
        w = weights_at(weight_at, weight.unit, heads, d, first, B)
        x, _ = inside_at(
            q, key_at, key, nodes, edge_key_at, edge_key, edge, live, edge_bias, d, first, B
        )
        s += tl.sum(w * activated(x, negative_slope, ACTIVATION, TARGET), 2)
    return s
