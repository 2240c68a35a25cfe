"""The naive formula in PyTorch's own operations: any device and dtype, O(n * m * d) memory.

It is the fallback, the oracle of the tests, and what double backward goes through; so it is written
to be read, to be traced, and to be differentiated as often as one likes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from .dropout import keep_mask
from .shapes import accumulate_dtype, combine_masks, leading_shape, present_keys


def scores(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    *,
    activation: str,
    negative_slope: float,
    scale: float,
) -> Tensor:
    """(E1): (*L, n, m), in query's dtype."""
    acc = accumulate_dtype(query.dtype)
    f = _activation(activation, negative_slope)
    return _scores(query.to(acc), key.to(acc), weight.to(acc), f, scale).to(query.dtype)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    attn_mask: Tensor | None,
    key_lengths: Tensor | None,
    is_causal: bool,
    dropout_p: float,
    seed: Tensor | None,
    activation: str,
    negative_slope: float,
    scale: float,
    return_weights: bool,
    packed_key: Tensor | None = None,
    batch: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(E1)-(E3): context (*L, n, dv), weights (*L, n, m) where asked for, lse (*L, n).

    batch (*L) numbers the leading entries for dropout; by default in row-major order.
    """
    lead = leading_shape(
        query.shape[:-2],
        key.shape[:-2],
        value.shape[:-2],
        weight.shape[:-1],
        () if attn_mask is None else attn_mask.shape[:-2],
        () if key_lengths is None else key_lengths.shape,
    )
    n, m = query.shape[-2], key.shape[-2]
    acc = accumulate_dtype(query.dtype)
    q, k, u, w = (x.to(acc) for x in (query, key, value, weight))
    if key_lengths is not None:  # 0 * NaN is NaN: what a padded row holds must not get this far
        present = present_keys(key_lengths, m).unsqueeze(-1)
        k, u = torch.where(present, k, 0.0), torch.where(present, u, 0.0)

    s = _scores(q, k, w, _activation(activation, negative_slope), scale)
    taking_part, bias = combine_masks(query, key, attn_mask, key_lengths, is_causal)
    if bias is not None:
        s = s + bias.to(acc)
    if taking_part is not None:
        s = torch.where(taking_part, s, float("-inf"))
    s = s.expand(*lead, n, m)

    # A row with nothing left is computed as a row of zeros and then replaced, so that neither it
    # nor any of its derivatives passes through inf - inf.
    empty = (s == float("-inf")).all(-1, keepdim=True)
    s = torch.where(empty, 0.0, s)
    a = torch.where(empty, 0.0, torch.softmax(s, -1))
    lse = torch.where(empty.squeeze(-1), float("-inf"), torch.logsumexp(s, -1))

    if seed is not None:
        if batch is None:
            batch = torch.arange(prod(lead), device=query.device).view(lead)
        kept = 0.0 if dropout_p == 1 else 1 / (1 - dropout_p)
        a = torch.where(keep_mask(seed, dropout_p, batch, n, m), a * kept, 0.0)
    context = (a @ u).to(query.dtype)
    return context, a.to(query.dtype) if return_weights else None, lse


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    is_causal: bool,
    dropout_p: float,
    seed: Tensor | None,
    activation: str,
    negative_slope: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """A loop over the sequences: context (*L, total_q, dv), lse (*L, total_q).

    It reads the lengths, so that it cannot be traced.
    """
    lead = leading_shape(query.shape[:-2], key.shape[:-2], value.shape[:-2], weight.shape[:-1])
    ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    sequences = max(1, len(ends_q) - 1)  # where there is none, one without rows
    first = torch.arange(prod(lead), device=query.device).view(lead) * sequences
    contexts, lses = [], []
    for s in range(sequences):
        rows, columns = slice(*ends_q[s : s + 2]), slice(*ends_k[s : s + 2])
        context, _, lse = attention(
            query[..., rows, :],
            key[..., columns, :],
            value[..., columns, :],
            weight,
            attn_mask=None,
            key_lengths=None,
            is_causal=is_causal,
            dropout_p=dropout_p,
            seed=seed,
            activation=activation,
            negative_slope=negative_slope,
            scale=scale,
            return_weights=False,
            batch=first + s,
        )
        contexts.append(context)
        lses.append(lse)
    return torch.cat(contexts, -2), torch.cat(lses, -1)


def _activation(name: str, negative_slope: float) -> Callable[[Tensor], Tensor]:
    if name == "leaky_relu":
        return partial(F.leaky_relu, negative_slope=negative_slope)
    return {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}[name]


def _scores(q: Tensor, k: Tensor, w: Tensor, f: Callable[[Tensor], Tensor], scale: float) -> Tensor:
    x = f(q.unsqueeze(-2) + k.unsqueeze(-3))  # (..., n, m, d)
    return scale * torch.einsum("...ijt,...t->...ij", x, w)
