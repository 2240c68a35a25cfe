"""Gradients over the edges of every target: of the scores, (E4), of queries and weights, (E5) and
(E6), and of what edges have of their own.
"""

import triton
import triton.language as tl

from .edge_dropout import kept_at
from .edges import (
    ANY_EDGES,
    SIGNS,
    as_weights,
    ends_from,
    heads_of,
    included,
    inside_at,
    note_cut,
    numbers_at,
    numbers_or,
    places_from,
    put_numbers,
    put_part,
    put_row,
    put_rows,
    put_signs,
    row_at,
    rows_at,
    rows_or,
    share_of,
    sums_of,
    weights_at,
)
from .maths import activated_with_slope
from .rows import matrix_of, program_index, vector_of, wide

# From this weight on an edge has all of its row, up to rounding: it moves nothing but lse.
ALL = tl.constexpr(1 - 4 * 2.0**-23)
EXCLUDED = tl.constexpr(-1.0)  # stands for the weight of an excluded edge


@triton.jit
def _moved_by(
    dc, grad_at, grad_context, i, value_at, row, nodes, live, heads, dv, WHOLE: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """Return dc_i . u_j, [BH, BE], from dc if WHOLE."""
    if WHOLE:
        return tl.sum(dc * rows_at(value_at, row, nodes, live, dv, 0, B), 2)
    else:
        da = tl.zeros(live.shape, tl.float32)
        for first in range(0, dv, B):
            part = row_at(grad_at, grad_context.row, i, heads, dv, first, B)
            da += tl.sum(part * rows_at(value_at, row, nodes, live, dv, first, B), 2)
        return da


@triton.jit
def _of_target(
    grad_at, grad_context, context_at, context, i, heads, dv, WHOLE: tl.constexpr, B: tl.constexpr
):
    """Return (dc_i if WHOLE; dc_i . c_i, [BH, 1])."""
    delta = tl.zeros((heads.shape[0], 1), tl.float32)
    dc = delta
    if grad_context is not None:
        if WHOLE:
            dc = row_at(grad_at, grad_context.row, i, heads, dv, 0, B)
            delta += tl.sum(dc * row_at(context_at, context.row, i, heads, dv, 0, B), 2)
        else:
            for first in range(0, dv, B):
                part = row_at(grad_at, grad_context.row, i, heads, dv, first, B)
                c = row_at(context_at, context.row, i, heads, dv, first, B)
                delta += tl.sum(part * c, 2)
    return dc, delta


@triton.jit(do_not_specialize=ANY_EDGES)
def edge_target_kernel(
    query,
    key,
    value,
    weight,
    edge_key,
    edge_bias,
    kept,
    sizes,
    begin,
    cuts,
    source,
    order,
    lse,
    softmax,
    given,
    delta,
    context,
    grad_context,
    grad_weights,
    grad_lse,
    pairs,
    signs,
    grad_query,
    grad_edge_key,
    grad_edge_bias,
    part_query,
    part_weight,
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
    WHOLE: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Program (share of the targets, block of hidden units, block of heads).

    given: the weights, if they need not be computed.
    pairs [edges by target, 2, leads]: ds and the weights after dropout, for the pass by source;
    signs [edges by target, leads, bytes]: those of q + k + g, if they are all it needs for f'.
    part_weight [shares, leads, d] is summed by the caller. What is None is not wanted.
    """
    block, column, program = program_index(head_blocks, columns)
    t0 = column * BD
    b, heads = heads_of(block, leads, BH)
    query_at = matrix_of(b, sizes, query)
    key_at = matrix_of(b, sizes, key)
    weight_at = vector_of(b, sizes, weight)
    lse_at = vector_of(b, sizes, lse)
    edge_key_at = rows_or(b, sizes, edge_key, key_at)
    value_at = rows_or(b, sizes, value, key_at)
    grad_at = rows_or(b, sizes, grad_context, key_at)
    context_at = rows_or(b, sizes, context, key_at)
    softmax_at = rows_or(b, sizes, softmax, key_at)
    bias_at = numbers_or(b, sizes, edge_bias, lse_at)
    given_at = numbers_or(b, sizes, given, lse_at)
    delta_at = numbers_or(b, sizes, delta, lse_at)
    grad_lse_at = numbers_or(b, sizes, grad_lse, lse_at)
    grad_weights_at = numbers_or(b, sizes, grad_weights, lse_at)
    to_query = rows_or(b, sizes, grad_query, key_at)
    to_edge_key = rows_or(b, sizes, grad_edge_key, key_at)
    to_edge_bias = numbers_or(b, sizes, grad_edge_bias, lse_at)
    w = weights_at(weight_at, weight.unit, heads, d, t0, BD)
    dw = tl.zeros((BH, BE, BD), tl.float32)

    i, e, last, stop, cut = share_of(begin, n, edges, program, share)
    nodes = ends_from(source, e, edges, BE)
    finish = stop
    while e + i < stop:
        finish = last + i
        following = tl.load(begin + tl.minimum(i + 2, n))
        end = tl.minimum(last, stop - i)
        dc, delta_i = _of_target(
            grad_at, grad_context, context_at, context, i, heads, dv, WHOLE, BV
        )
        if softmax is not None:
            high, unit = as_weights((softmax_at + i * softmax.row)[:, None], heads[:, None])
        else:
            high = tl.load(lse_at + i * lse.unit, mask=heads, other=0.0)[:, None]
            high, unit = tl.where(high == -float("inf"), 0.0, high), 1.0
        if delta is not None:
            delta_i += tl.load(delta_at + i * delta.unit, mask=heads, other=0.0)[:, None]
        dlse = 0.0
        if grad_lse is not None:
            dlse = tl.load(grad_lse_at + i * grad_lse.unit, mask=heads, other=0.0)[:, None]
        dq = tl.zeros((BH, BE, BD), tl.float32)
        q = row_at(query_at, query.row, i, heads, d, t0, BD)
        for e0 in range(e, end, BE):
            at, there = places_from(e0, end, heads, BE)
            ahead = ends_from(source, tl.minimum(e0 + BE, end), edges, BE)
            edge = at
            if (
                (edge_key is not None)
                or (edge_bias is not None)
                or (grad_weights is not None)
                or (given is not None)
            ):
                edge = tl.load(order + at, mask=at < end, other=0)
            live, bias = included(bias_at, edge_bias, edge, there)
            x, k = inside_at(
                q, key_at, key, nodes, edge_key_at, edge_key, edge, live, edge_bias, d, t0, BD
            )
            f, slope = activated_with_slope(x, negative_slope, ACTIVATION, TARGET)
            if WHOLE:
                s = tl.sum(w * f, 2)
            else:
                s = sums_of(
                    query_at, query, i, key_at, key, nodes, edge_key_at, edge_key, edge, weight_at,
                    weight, heads, live, edge_bias, d, negative_slope, ACTIVATION, BD, TARGET,
                )  # fmt: skip
            s = tl.where(live, s * scale + bias, -float("inf"))
            if given is not None:
                a = tl.where(live, numbers_at(given_at, given.unit, edge, there, 0.0), 0.0)
            else:
                a = tl.exp(s - high) * unit
            da = tl.zeros((BH, BE), tl.float32)
            if grad_context is not None:
                if value is None and WHOLE:
                    da = tl.sum(dc * k, 2)
                else:
                    da = _moved_by(
                        dc, grad_at, grad_context, i, value_at,
                        key.row if value is None else value.row, nodes, live, heads, dv, WHOLE, BV,
                    )  # fmt: skip
            if grad_weights is not None:
                da += numbers_at(grad_weights_at, grad_weights.unit, edge, there, 0.0)
            used = a
            if kept is not None:
                keep = kept_at(kept, at, b, leads, there)
                used = tl.where(keep, a * kept.scale, 0.0)
                da = tl.where(keep, da * kept.scale, 0.0)
            ds = a * (tl.where(a >= ALL, 0.0, da - delta_i) + dlse)
            ds = tl.where(s == -float("inf"), 0.0, ds)
            if pairs is not None:
                if edge_bias is not None:
                    used = tl.where(live, used, EXCLUDED)
                pair = pairs + (at * (2 * wide(leads)))[None, :] + b[:, None]
                tl.store(pair, ds, mask=there & (column == 0))
                tl.store(pair + leads, used, mask=there & (column == 0))
            if signs is not None:
                put_signs(signs, at, b, leads, columns * (BD // SIGNS), t0, there, x)
            if grad_edge_bias is not None:
                put_numbers(to_edge_bias, grad_edge_bias.unit, edge, there & (column == 0), ds)
            if grad_edge_key is not None:
                put_rows(
                    to_edge_key, grad_edge_key.row, edge, there, d, t0,
                    ds[:, :, None] * slope * (w * scale),
                )  # fmt: skip
            if grad_query is not None:
                dq += ds[:, :, None] * slope
            if part_weight is not None:
                dw += ds[:, :, None] * f
            nodes = ahead
        if grad_query is not None:
            row = tl.sum(tl.where(dq == 0.0, 0.0, dq * (w * scale)), 1)
            if (i == cut) | (finish >= stop):
                place = 2 * wide(program) + tl.where(i == cut, 0, 1)
                put_part(part_query, place, b, leads, heads, d, t0, row)
            else:
                put_row(to_query, grad_query.row, i, heads, d, t0, row)
        e = end
        i += 1
        last = following
    note_cut(cuts, program, share, i - 1, cut, finish, stop)
    if part_weight is not None:
        put_part(part_weight, wide(program), b, leads, heads, d, t0, tl.sum(dw, 1))


@triton.jit(do_not_specialize=ANY_EDGES)
def edge_delta_kernel(
    sizes,
    begin,
    cuts,
    order,
    weights,
    grad_weights,
    delta_rows,
    part,
    n,
    edges,
    leads,
    share,
    head_blocks,
    BH: tl.constexpr,
    BE: tl.constexpr,
):
    """Program (share of the targets, block of heads): the part of D_i that grad_weights has.

    delta_rows: a Matrix with one column.
    """
    block, _, program = program_index(head_blocks, 1)
    b, heads = heads_of(block, leads, BH)
    weights_from = vector_of(b, sizes, weights)
    grad_at = vector_of(b, sizes, grad_weights)
    i, e, last, stop, cut = share_of(begin, n, edges, program, share)
    finish = stop
    while e + i < stop:
        finish = last + i
        end = tl.minimum(last, stop - i)
        total = tl.zeros((BH, BE), tl.float32)
        for e0 in range(e, end, BE):
            at, there = places_from(e0, end, heads, BE)
            edge = tl.load(order + at, mask=at < end, other=0)
            a = numbers_at(weights_from, weights.unit, edge, there, 0.0)
            total += a * numbers_at(grad_at, grad_weights.unit, edge, there, 0.0)
        row = tl.sum(total, 1)[:, None]
        if (i == cut) | (finish >= stop):
            place = 2 * wide(program) + tl.where(i == cut, 0, 1)
            put_part(part, place, b, leads, heads, 1, 0, row)
        else:
            put_row(matrix_of(b, sizes, delta_rows), delta_rows.row, i, heads, 1, 0, row)
        e = end
        i += 1
        last = tl.load(begin + tl.minimum(i + 1, n))
    note_cut(cuts, program, share, i - 1, cut, finish, stop)
