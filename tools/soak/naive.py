"""The formula once more, row by row over the keys that take part, to compare the reference with.

It shares nothing with the reference but dropout's counter.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from attnkernels.ops.dropout import keep_mask

Row = tuple[Tensor, Tensor, Tensor]  # context (dv,), weights (m,), lse ()


def scores(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    *,
    activation: str,
    negative_slope: float,
    scale: float,
) -> Tensor:
    """Return (E1), as `additive_scores` does."""
    x = _wide(query)[..., :, None, :] + _wide(key)[..., None, :, :]
    match activation:
        case "tanh":
            f = x.tanh()
        case "sigmoid":
            f = (0.5 * x).tanh() * 0.5 + 0.5
        case "relu":
            f = torch.where(x <= 0, 0.0, x)  # the derivative at 0 is 0, and NaN stays NaN
        case _:
            f = torch.where(x > 0, x, negative_slope * x)
    return (scale * (f * _wide(weight)[..., None, None, :]).sum(-1)).to(query.dtype)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    attn_mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    dropout_p: float = 0.0,
    return_weights: bool = False,
    return_lse: bool = False,
    **scoring: Any,
) -> Tensor | tuple[Tensor, ...]:
    """Return (E1) to (E3), as `additive_attention` does."""
    n, m, dv = query.shape[-2], key.shape[-2], value.shape[-1]
    leads = [query.shape[:-2], key.shape[:-2], value.shape[:-2], weight.shape[:-1]]
    leads += [] if attn_mask is None else [attn_mask.shape[:-2]]
    leads += [] if key_lengths is None else [key_lengths.shape]
    lead = torch.broadcast_shapes(*leads)
    seed = torch.randint(0, 2**62, ()) if dropout_p else None

    q, k, u = (_wide(x).expand(*lead, *x.shape[-2:]) for x in (query, key, value))
    w = _wide(weight).expand(*lead, weight.shape[-1])
    bias, taking_part = None, torch.ones(n, m, dtype=torch.bool).expand(*lead, n, m)
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        taking_part = taking_part & (attn_mask if is_bool else attn_mask != float("-inf"))
        bias = None if is_bool else _wide(attn_mask).expand(*lead, n, m)
    taking_part = _seen(taking_part, is_causal, window_size)
    if key_lengths is not None:
        taking_part = taking_part & (torch.arange(m) < key_lengths[..., None])[..., None, :]

    rows: list[Row] = []
    for b, at in enumerate(product(*map(range, lead))):
        kept = torch.ones(n, m)
        if seed is not None:
            kept = _kept(seed, dropout_p, b, n, m)
        of_entry = (None if bias is None else bias[at], taking_part[at], kept)
        rows += _rows(q[at], k[at], u[at], w[at], *of_entry, scoring)
    return _results(rows, query, lead, (n, m, dv), return_weights, return_lse)


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    is_causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    dropout_p: float = 0.0,
    return_lse: bool = False,
    **scoring: Any,
) -> Tensor | tuple[Tensor, ...]:
    """Return (E1) to (E3) of packed sequences, as `additive_attention_varlen` does."""
    leads = [query.shape[:-2], key.shape[:-2], value.shape[:-2], weight.shape[:-1]]
    lead = torch.broadcast_shapes(*leads)
    seed = torch.randint(0, 2**62, ()) if dropout_p else None
    q, k, u = (_wide(x).expand(*lead, *x.shape[-2:]) for x in (query, key, value))
    w = _wide(weight).expand(*lead, weight.shape[-1])

    rows: list[Row] = []
    counter = 0
    for at in product(*map(range, lead)):
        ends = zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True)
        for of_q, of_k in ends:
            n, m = of_q[1] - of_q[0], of_k[1] - of_k[0]
            taking_part = torch.ones(n, m, dtype=torch.bool)
            taking_part = _seen(taking_part, is_causal, window_size)
            kept = torch.ones(n, m)
            if seed is not None:
                kept = _kept(seed, dropout_p, counter, n, m)
            counter += 1
            sequence = (x[at][slice(*of)] for x, of in ((q, of_q), (k, of_k), (u, of_k)))
            for context, _, lse in _rows(*sequence, w[at], None, taking_part, kept, scoring):
                rows.append((context, lse, lse))  # weights have no shape of their own here
    sizes = (query.shape[-2], 0, value.shape[-1])
    return _results(rows, query, lead, sizes, False, return_lse)


def _seen(taking_part: Tensor, is_causal: bool, window_size: tuple[int, int]) -> Tensor:
    """Return the pairs (..., n, m) without those that a position excludes."""
    left, right = window_size
    if is_causal:
        taking_part = taking_part.tril()
    if right >= 0:
        taking_part = taking_part.tril(right)
    return taking_part.triu(-left) if left >= 0 else taking_part


def _rows(
    q: Tensor,
    k: Tensor,
    u: Tensor,
    w: Tensor,
    bias: Tensor | None,
    taking_part: Tensor,
    kept: Tensor,
    scoring: dict[str, Any],
) -> Iterator[Row]:
    """Yield the results of each query of one entry, from the keys that take part alone."""
    for i in range(q.shape[0]):
        j = taking_part[i].nonzero().squeeze(1)
        if not len(j):  # a sum of nothing, which keeps the graph
            nothing = 0.0 * q[i, :0].sum()
            yield (
                u.new_zeros(u.shape[-1]) + nothing,
                u.new_zeros(u.shape[0]) + nothing,
                -torch.inf + nothing,
            )
            continue
        s = scores(q[i : i + 1], k[j], w, **scoring)[0]
        s = s if bias is None else s + bias[i, j]
        factor = kept[i, j].to(s.dtype)
        a = torch.where(factor > 0, s.softmax(0) * factor, 0.0)
        weights = u.new_zeros(u.shape[0]).index_put((j,), a)
        yield a @ u[j], weights, s.logsumexp(0)


def _results(
    rows: list[Row],
    query: Tensor,
    lead: tuple[int, ...],
    sizes: tuple[int, int, int],
    return_weights: bool,
    return_lse: bool,
) -> Tensor | tuple[Tensor, ...]:
    n, m, dv = sizes
    wide = _wide(query)
    empty = [wide.sum() * 0 + wide.new_zeros(*lead, n, *end) for end in ((dv,), (m,), ())]
    made = [torch.stack(x).reshape(*lead, n, *x[0].shape) for x in zip(*rows, strict=True)]
    context, weights, lse = made or empty
    results = [context.to(query.dtype)]
    results += [weights.to(query.dtype)] if return_weights else []
    results += [lse] if return_lse else []
    return tuple(results) if len(results) > 1 else results[0]


def _kept(seed: Tensor, p: float, batch: int, n: int, m: int) -> Tensor:
    """Return the factor of each weight: 1 / (1 - p), or 0 if it is dropped."""
    factor = 0.0 if p == 1 else 1 / (1 - p)
    return keep_mask(seed, p, torch.tensor(batch), n, m).double() * factor


def _wide(x: Tensor) -> Tensor:
    """Return `x` in the dtype of the arithmetic."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
