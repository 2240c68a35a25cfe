"""Gradients over the edges of every source: of keys, (E5), and values; and sums over cut nodes."""

import triton
import triton.language as tl

from .edge_targets import EXCLUDED
from .edges import (
    ANY_EDGES,
    SIGNS,
    ends_from,
    heads_of,
    inside_at,
    note_cut,
    parts_of,
    places_from,
    put_part,
    put_row,
    row_at,
    rows_at,
    rows_or,
    share_of,
    signs_at,
    weights_at,
)
from .maths import activated_with_slope, slope_below
from .rows import matrix_of, program_index, vector_of, wide


@triton.jit(do_not_specialize=ANY_EDGES)
def edge_source_kernel(
    query,
    key,
    value,
    weight,
    edge_key,
    edge_bias,
    sizes,
    begin,
    cuts,
    target,
    place,
    order,
    grad_context,
    pairs,
    signs,
    grad_key,
    grad_value,
    part_key,
    part_value,
    n,
    edges,
    leads,
    share,
    head_blocks,
    columns,
    d,
    dv,
    scale,
    negative_slope,
    ACTIVATION: tl.constexpr,
    BH: tl.constexpr,
    BE: tl.constexpr,
    BD: tl.constexpr,
    BV: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (share of the n sources, block of columns of keys and values, block of heads).

    Without a value, what it would get goes to the key. pairs and signs: from edge_target_kernel.
    """
    block, column, program = program_index(head_blocks, columns)
    t0 = column * BD
    c0 = column * BV
    b, heads = heads_of(block, leads, BH)
    if grad_key is not None:
        if signs is None:
            query_at = matrix_of(b, sizes, query)
            key_at = matrix_of(b, sizes, key)
            edge_key_at = rows_or(b, sizes, edge_key, key_at)
        to_key = matrix_of(b, sizes, grad_key)
        w = weights_at(vector_of(b, sizes, weight), weight.unit, heads, d, t0, BD) * scale
    if grad_context is not None:
        grad_at = matrix_of(b, sizes, grad_context)
    if grad_value is not None:
        to_value = matrix_of(b, sizes, grad_value)

    j, e, last, stop, cut = share_of(begin, n, edges, program, share)
    nodes = ends_from(target, e, edges, BE)
    places = ends_from(place, e, edges, BE)
    finish = stop
    while e + j < stop:
        finish = last + j
        following = tl.load(begin + tl.minimum(j + 2, n))
        end = tl.minimum(last, stop - j)
        dk = tl.zeros((BH, BE, BD), tl.float32)
        du = tl.zeros((BH, BE, BV), tl.float32)
        if (grad_key is not None) and (signs is None):
            k = row_at(key_at, key.row, j, heads, d, t0, BD)
        for e0 in range(e, end, BE):
            _, live = places_from(e0, end, heads, BE)
            ahead = tl.minimum(e0 + BE, end)
            nodes_ahead = ends_from(target, ahead, edges, BE)
            places_ahead = ends_from(place, ahead, edges, BE)
            pair = pairs + (places * (2 * wide(leads)))[None, :] + b[:, None]
            ds = tl.load(pair, mask=live, other=0.0)
            used = tl.load(pair + leads, mask=live, other=0.0)
            if edge_bias is not None:
                live = live & (used != EXCLUDED)
                used = tl.where(live, used, 0.0)
            if grad_key is not None:
                if signs is None:
                    edge = places
                    if edge_key is not None:
                        edge = tl.load(order + places)
                    x, _ = inside_at(
                        k, query_at, query, nodes, edge_key_at, edge_key, edge, live, edge_bias, d,
                        t0, BD,
                    )  # fmt: skip
                    _, slope = activated_with_slope(x, negative_slope, ACTIVATION, TARGET)
                else:
                    above = signs_at(signs, places, b, leads, columns * (BD // SIGNS), t0, live, BD)
                    slope = tl.where(above, 1.0, slope_below(negative_slope, ACTIVATION))
                dk += ds[:, :, None] * slope
            if grad_context is not None:
                du += used[:, :, None] * rows_at(grad_at, grad_context.row, nodes, live, dv, c0, BV)
            nodes = nodes_ahead
            places = places_ahead
        parted = (j == cut) | (finish >= stop)
        at = 2 * wide(program) + tl.where(j == cut, 0, 1)
        if grad_key is not None:
            row = tl.sum(tl.where(dk == 0.0, 0.0, dk * w), 1)
            if (value is None) and (grad_context is not None):
                row += tl.sum(du, 1)
            if parted:
                put_part(part_key, at, b, leads, heads, d, t0, row)
            else:
                put_row(to_key, grad_key.row, j, heads, d, t0, row)
        if grad_value is not None:
            row_v = tl.sum(du, 1)
            if parted:
                put_part(part_value, at, b, leads, heads, dv, c0, row_v)
            else:
                put_row(to_value, grad_value.row, j, heads, dv, c0, row_v)
        e = end
        j += 1
        last = following
    note_cut(cuts, program, share, j - 1, cut, finish, stop)


@triton.jit(do_not_specialize=ANY_EDGES)
def edge_sum_kernel(
    sizes,
    cuts,
    part,
    out,
    leads,
    head_blocks,
    columns,
    width,
    BH: tl.constexpr,
    BE: tl.constexpr,
    BD: tl.constexpr,
):
    """Program (share, block of columns, block of heads): sum the parts of the node that is cut.

    part [parts, leads, width]; out: a Matrix with a row per node.
    """
    block, column, program = program_index(head_blocks, columns)
    i = tl.load(cuts + 2 * program)
    count = tl.load(cuts + 2 * program + 1)
    if count == 0:
        return
    b, heads = heads_of(block, leads, BH)
    base = part + b * wide(width)
    sums = tl.zeros((BH, BE, BD), tl.float32)
    for first in range(0, count, BE):
        _, there = places_from(first, count, heads, BE)
        place = parts_of(program, first, BE)
        sums += rows_at(base, wide(leads) * width, place, there, width, column * BD, BD)
    put_row(matrix_of(b, sizes, out), out.row, i, heads, width, column * BD, tl.sum(sums, 1))
