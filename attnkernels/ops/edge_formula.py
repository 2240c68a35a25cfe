"""Attention over edges in PyTorch's own operations: any device and dtype, O(edges * d) memory.

It is the fallback, the oracle of the tests, and the path of double backward, as `formula` is for
all pairs.

    s_e = scale * sum_t w_t f(q_it + k_jt + g_et) + b_e,    for the edge e from j to i
    a_e = softmax of s over the edges of i,    c_i = sum_e a_e u_j
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .dropout import keep_mask
from .formula import FUNCTIONS
from .shapes import accumulate_dtype, leading_shape
from .signature import EdgeOptions


def attention(
    query: Tensor, key: Tensor, value: Tensor | None, weight: Tensor, options: EdgeOptions
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return context (*L, n, dv), weights (*L, E) as edges were given or None, lse (*L, n).

    Without a value, the keys are the values.
    """
    value = key if value is None else value
    edge_key, edge_bias = options.edge_key, options.edge_bias
    lead = leading_shape(
        query.shape[:-2],
        key.shape[:-2],
        value.shape[:-2],
        weight.shape[:-1],
        () if edge_key is None else edge_key.shape[:-2],
        () if edge_bias is None else edge_bias.shape[:-1],
    )
    acc = accumulate_dtype(query.dtype)
    q, k, u, w = (x.to(acc) for x in (query, key, value, weight))
    # By target, as dropout counts them.
    source, n, count = options.source, query.shape[-2], options.source.shape[0]
    target = torch.empty_like(source).index_copy(0, options.place, options.target)
    x = q[..., target, :] + k[..., source, :]
    if edge_key is not None:
        x = x + edge_key.to(acc)[..., options.order, :]
    values = u[..., source, :]
    bias = excluded = None
    if edge_bias is not None:
        bias = edge_bias.to(acc)[..., options.order]
        excluded = bias == float("-inf")
        # 0 * NaN is NaN: what an excluded edge leads to must not get this far
        x = torch.where(excluded.unsqueeze(-1), 0.0, x)
        values = torch.where(excluded.unsqueeze(-1), 0.0, values)
    f = FUNCTIONS[options.activation](x, options.negative_slope)
    s = options.scale * (f * w.unsqueeze(-2)).sum(-1)
    if bias is not None and excluded is not None:
        s = torch.where(excluded, float("-inf"), s + bias)
    a, lse = _softmax(s.expand(*lead, count), target, n)
    if options.seed is not None:
        batch = torch.arange(prod(lead), device=query.device).view(lead)
        p = options.dropout_p
        kept = 0.0 if p == 1 else 1 / (1 - p)
        keep = keep_mask(options.seed, p, batch, 1, count).squeeze(-2)
        a = torch.where(keep, a * kept, 0.0)
    moved = a.unsqueeze(-1) * values
    context = moved.new_zeros(*lead, n, u.shape[-1]).index_add(-2, target, moved)
    weights = None
    if options.return_weights:
        weights = torch.empty_like(a).index_copy(-1, options.order, a).to(query.dtype)
    return context.to(query.dtype), weights, lse


def _softmax(s: Tensor, target: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the weights of edges, and lse: 0 and -inf for a target that no edge is left of.

    The edges of such a target are computed as zeros and then replaced, so that no derivative passes
    through inf - inf.
    """
    rows = target.expand(s.shape)
    high = s.new_full((*s.shape[:-1], n), float("-inf"))
    high = high.scatter_reduce(-1, rows, s.detach(), "amax")
    empty = high == float("-inf")
    gone = empty[..., target]
    high = torch.where(empty, 0.0, high)
    e = torch.exp(torch.where(gone, 0.0, s) - high[..., target])
    e = torch.where(gone, 0.0, e)
    total = e.new_zeros(high.shape).scatter_add(-1, rows, e)
    total = torch.where(empty, 1.0, total)
    return e / total[..., target], torch.where(empty, float("-inf"), high + total.log())
