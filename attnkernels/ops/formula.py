"""The naive formula in PyTorch's own operations: any device and dtype, O(n * m * d) memory.

It is the fallback, the oracle of the tests, and the path of double backward. It is written to be
read, traced, and differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from . import sines
from .dropout import keep_mask
from .key_blocks import in_blocks
from .shapes import accumulate_dtype, attention_lead, combine_masks, present_keys
from .signature import Options

# f of (E1) by its name; its arguments are x = q + k and the negative slope.
FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "tanh": lambda x, slope: torch.tanh(x),
    "sigmoid": lambda x, slope: torch.sigmoid(x),
    "relu": lambda x, slope: torch.relu(x),
    "leaky_relu": F.leaky_relu,
}


def scores(query: Tensor, key: Tensor, weight: Tensor, options: Options) -> Tensor:
    """Return (E1), (*L, n, m), in query's dtype."""
    acc = accumulate_dtype(query.dtype)
    return _scores(query.to(acc), key.to(acc), weight.to(acc), options).to(query.dtype)


def attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, options: Options
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return (E1)-(E3): context (*L, n, dv), weights (*L, n, m) or None, lse (*L, n)."""
    if options.cu_seqlens_q is not None and options.cu_seqlens_k is not None:
        ends = options.cu_seqlens_q.tolist(), options.cu_seqlens_k.tolist()
        return _packed(query, key, value, weight, options, *ends)
    return _attention(query, key, value, weight, options)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    options: Options,
    batch: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the results for one sequence.

    batch (*L) numbers the leading entries for dropout; by default in row-major order.
    """
    attn_mask, key_lengths, key_starts, *_ = options
    lead = attention_lead(query, key, value, weight, attn_mask, key_lengths, key_starts)
    n, m = query.shape[-2], key.shape[-2]
    acc = accumulate_dtype(query.dtype)
    q, k, u, w = (x.to(acc) for x in (query, key, value, weight))
    present = present_keys(key_lengths, key_starts, m)
    if present is not None:  # 0 * NaN is NaN: the content of a padded row must not get this far
        rows = present.unsqueeze(-1)
        k, u = torch.where(rows, k, 0.0), torch.where(rows, u, 0.0)

    window = options.window_left, options.window_right
    taking_part, bias = combine_masks(query, key, attn_mask, present, *window)
    s = _scores(q, k, w, options)
    s = s if bias is None else s + bias.to(acc)
    s = s if taking_part is None else torch.where(taking_part, s, float("-inf"))
    a, lse = _softmax(s.expand(*lead, n, m))

    if options.seed is not None:
        if batch is None:
            batch = torch.arange(prod(lead), device=query.device).view(lead)
        p = options.dropout_p
        kept = 0.0 if p == 1 else 1 / (1 - p)
        a = torch.where(keep_mask(options.seed, p, batch, n, m), a * kept, 0.0)
    context = (a @ u).to(query.dtype)
    return context, a.to(query.dtype) if options.return_weights else None, lse


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    options: Options,
    ends_q: list[int],
    ends_k: list[int],
) -> tuple[Tensor, None, Tensor]:
    """Return context (*L, total_q, dv) and lse (*L, total_q), in a loop over the sequences."""
    lead = attention_lead(query, key, value, weight, None)
    sequences = max(1, len(ends_q) - 1)  # if there are no sequences, one without rows
    first = torch.arange(prod(lead), device=query.device).view(lead) * sequences
    contexts, lses = [], []
    for s in range(sequences):
        rows, columns = slice(*ends_q[s : s + 2]), slice(*ends_k[s : s + 2])
        q, k, u = query[..., rows, :], key[..., columns, :], value[..., columns, :]
        context, _, lse = _attention(q, k, u, weight, options, first + s)
        contexts.append(context)
        lses.append(lse)
    return torch.cat(contexts, -2), None, torch.cat(lses, -1)


def _scores(q: Tensor, k: Tensor, w: Tensor, options: Options) -> Tensor:
    if options.precision == "fast":
        exact = partial(_unscaled, options=options)
        found = sines.scores(q, k, w, options.activation, exact)
        if found is not None:
            return options.scale * found
    return options.scale * in_blocks(partial(_unscaled, options=options), q, k, w)


def _unscaled(q: Tensor, k: Tensor, w: Tensor, options: Options) -> Tensor:
    x = q.unsqueeze(-2) + k.unsqueeze(-3)  # (..., n, m, d)
    x = FUNCTIONS[options.activation](x, options.negative_slope)
    if w.dim() > 1:  # not an einsum: ONNX has none of operands that differ in rank
        return (x @ w[..., None, :, None]).squeeze(-1)
    return x @ w


def _softmax(s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights and lse of (E2): 0 and -inf for a row with nothing left.

    Such a row is computed as a row of zeros and then replaced, so that neither it nor any of its
    derivatives passes through inf - inf.
    """
    empty = (s == float("-inf")).all(-1, keepdim=True)
    s = torch.where(empty, 0.0, s)
    a = torch.where(empty, 0.0, torch.softmax(s, -1))
    lse = torch.where(empty.squeeze(-1), float("-inf"), torch.logsumexp(s, -1))
    return a, lse
