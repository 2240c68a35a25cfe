"""Scores, online softmax and context of every target over its edges, (E1)-(E3)."""

import triton
import triton.language as tl

from .edge_dropout import kept_at
from .edges import (
    ANY_EDGES,
    as_weights,
    ends_from,
    heads_of,
    included,
    inside_at,
    note_cut,
    numbers_at,
    numbers_or,
    parts_of,
    places_from,
    put_numbers,
    put_part,
    put_row,
    put_state,
    row_at,
    rows_at,
    rows_or,
    share_of,
    state_at,
    sums_of,
    weights_at,
)
from .maths import activated
from .rows import matrix_of, program_index, vector_of, wide


@triton.jit
def _taken_in(highest, total, context, s, p, kept_p, u):
    """Add exp(s) p to a running softmax [BH, BE], and exp(s) kept_p u to its context."""
    new = tl.maximum(highest, s)
    finite = tl.where(new == -float("inf"), 0.0, new)
    alpha = tl.exp(highest - finite)
    e = tl.exp(s - finite)
    context = context * alpha[:, :, None] + (e * kept_p)[:, :, None] * u
    return new, total * alpha + e * p, context


@triton.jit
def _together(highest, total, context):
    """Return the softmax of all edges of a node, [BH], and its context, [BH, BV]."""
    top = tl.max(highest, 1)
    finite = tl.where(top == -float("inf"), 0.0, top)
    unit = tl.exp(highest - finite[:, None])
    return top, tl.sum(total * unit, 1), tl.sum(context * unit[:, :, None], 1)


@triton.jit
def _finish(
    context_at, context, lse_at, lse, softmax_at, softmax, i, heads, dv, c0, top, total, sums
):  # fmt: skip
    """Store the context, lse and softmax of a node: 0 and -inf if no edge takes part."""
    divisor = tl.where(total == 0.0, 1.0, total)
    put_row(context_at, context.row, i, heads, dv, c0, sums / divisor[:, None])
    first = heads & (c0 == 0)
    tl.store(lse_at + i * lse.unit, top + tl.log(total), mask=first)
    put_state(softmax_at + i * softmax.row, top, total, first)


@triton.jit(do_not_specialize=ANY_EDGES)
def edge_forward_kernel(
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
    context,
    lse,
    softmax,
    scores,
    part_context,
    part_state,
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
    """Program (share of the targets, block of columns of the context, block of heads).

    WHOLE: a block of columns has all of query and value. scores [leads, edges]: for the weights.
    """
    block, column, program = program_index(head_blocks, columns)
    c0 = column * BV
    b, heads = heads_of(block, leads, BH)
    query_at = matrix_of(b, sizes, query)
    key_at = matrix_of(b, sizes, key)
    weight_at = vector_of(b, sizes, weight)
    edge_key_at = rows_or(b, sizes, edge_key, key_at)
    value_at = rows_or(b, sizes, value, key_at)
    context_at = matrix_of(b, sizes, context)
    lse_at = vector_of(b, sizes, lse)
    softmax_at = matrix_of(b, sizes, softmax)
    bias_at = numbers_or(b, sizes, edge_bias, lse_at)
    scores_at = numbers_or(b, sizes, scores, lse_at)
    if WHOLE:
        w = weights_at(weight_at, weight.unit, heads, d, 0, BD)

    i, e, last, stop, cut = share_of(begin, n, edges, program, share)
    nodes = ends_from(source, e, edges, BE)
    finish = stop
    while e + i < stop:
        finish = last + i
        following = tl.load(begin + tl.minimum(i + 2, n))
        end = tl.minimum(last, stop - i)
        highest = tl.full((BH, BE), -float("inf"), tl.float32)
        total = tl.zeros((BH, BE), tl.float32)
        sums = tl.zeros((BH, BE, BV), tl.float32)
        if WHOLE:
            q = row_at(query_at, query.row, i, heads, d, 0, BD)
        for e0 in range(e, end, BE):
            at, live = places_from(e0, end, heads, BE)
            ahead = ends_from(source, tl.minimum(e0 + BE, end), edges, BE)
            edge = at
            if (edge_key is not None) or (edge_bias is not None) or (scores is not None):
                edge = tl.load(order + at, mask=at < end, other=0)
            there = live
            live, bias = included(bias_at, edge_bias, edge, there)
            if WHOLE:
                x, u = inside_at(
                    q, key_at, key, nodes, edge_key_at, edge_key, edge, live, edge_bias, d, 0, BD
                )  # fmt: skip
                s = tl.sum(w * activated(x, negative_slope, ACTIVATION, TARGET), 2)
            else:
                s = sums_of(
                    query_at, query, i, key_at, key, nodes, edge_key_at, edge_key, edge, weight_at,
                    weight, heads, live, edge_bias, d, negative_slope, ACTIVATION, BD, TARGET,
                )  # fmt: skip
            if value is not None:
                u = rows_at(value_at, value.row, nodes, live, dv, c0, BV)
            elif not WHOLE:
                u = rows_at(key_at, key.row, nodes, live, dv, c0, BV)
            s = tl.where(live, s * scale + bias, -float("inf"))
            if scores is not None:
                put_numbers(scores_at, scores.unit, edge, there & (column == 0), s)
            kept_p = 1.0
            if kept is not None:
                keep = kept_at(kept, at, b, leads, there)
                kept_p = tl.where(keep, kept.scale, 0.0)
            highest, total, sums = _taken_in(highest, total, sums, s, 1.0, kept_p, u)
            nodes = ahead
        top, total_i, sums_i = _together(highest, total, sums)
        if (i == cut) | (finish >= stop):
            place = 2 * wide(program) + tl.where(i == cut, 0, 1)
            put_part(part_context, place, b, leads, heads, dv, c0, sums_i)
            state = part_state + (place * leads + b) * 2
            put_state(state, top, total_i, heads & (column == 0))
        else:
            _finish(
                context_at, context, lse_at, lse, softmax_at, softmax, i, heads, dv, c0, top,
                total_i, sums_i,
            )  # fmt: skip
        e = end
        i += 1
        last = following
    note_cut(cuts, program, share, i - 1, cut, finish, stop)


@triton.jit(do_not_specialize=ANY_EDGES)
def edge_merge_kernel(
    sizes,
    cuts,
    context,
    lse,
    softmax,
    part_context,
    part_state,
    leads,
    head_blocks,
    columns,
    dv,
    BH: tl.constexpr,
    BE: tl.constexpr,
    BV: tl.constexpr,
):
    """Program (share, block of columns, block of heads): the target that is cut at its end."""
    block, column, program = program_index(head_blocks, columns)
    i = tl.load(cuts + 2 * program)
    count = tl.load(cuts + 2 * program + 1)
    if count == 0:
        return
    c0 = column * BV
    b, heads = heads_of(block, leads, BH)
    highest = tl.full((BH, BE), -float("inf"), tl.float32)
    total = tl.zeros((BH, BE), tl.float32)
    sums = tl.zeros((BH, BE, BV), tl.float32)
    for first in range(0, count, BE):
        _, there = places_from(first, count, heads, BE)
        place = parts_of(program, first, BE)
        s, p = state_at(part_state + (place[None, :] * leads + b[:, None]) * 2, there)
        base = part_context + b * wide(dv)
        u = rows_at(base, wide(leads) * dv, place, there, dv, c0, BV)
        highest, total, sums = _taken_in(highest, total, sums, s, p, 1.0, u)
    top, total_i, sums_i = _together(highest, total, sums)
    context_at = matrix_of(b, sizes, context)
    lse_at, softmax_at = vector_of(b, sizes, lse), matrix_of(b, sizes, softmax)
    _finish(
        context_at, context, lse_at, lse, softmax_at, softmax, i, heads, dv, c0, top, total_i,
        sums_i,
    )  # fmt: skip


@triton.jit(do_not_specialize=ANY_EDGES)
def edge_weights_kernel(
    sizes,
    target,
    place,
    order,
    scores,
    softmax,
    kept,
    edges,
    leads,
    head_blocks,
    BH: tl.constexpr,
    BE: tl.constexpr,
):
    """Turn scores into weights in place, after dropout: program (block of edges, block of heads).

    The edges are taken by source: that order comes with their targets.
    """
    block, _, program = program_index(head_blocks, 1)
    b, heads = heads_of(block, leads, BH)
    at, there = places_from(wide(program) * BE, edges, heads, BE)
    i = tl.load(target + at, mask=at < edges, other=0)
    by_target = tl.load(place + at, mask=at < edges, other=0)
    edge = tl.load(order + by_target, mask=at < edges, other=0)
    scores_at = vector_of(b, sizes, scores)
    state = matrix_of(b, sizes, softmax)[:, None] + (i * softmax.row)[None, :]
    high, unit = as_weights(state, there)
    a = tl.exp(numbers_at(scores_at, scores.unit, edge, there, 0.0) - high) * unit
    if kept is not None:
        keep = kept_at(kept, by_target, b, leads, there)
        a = tl.where(keep, a * kept.scale, 0.0)
    put_numbers(scores_at, scores.unit, edge, there, a)
