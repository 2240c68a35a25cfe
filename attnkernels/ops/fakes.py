"""Shapes and dtypes of the operators' results, for tracing and for meta tensors.

Results are in the dtype of the arithmetic. A gradient has the shape of its input, and those of
query, key and value its dtype too. Results over edges lie by row. A result that is not wanted has
no elements, but for the weights of "forward": where they are not wanted, a backward finds in their
place, (*L, 2 n), the maximum of each row's scores and the sum of exp(s - maximum).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .codes import (
    EDGE_BIAS,
    EDGE_KEY,
    KEY,
    LANE,
    MASK,
    PANEL,
    QUERY,
    VALUE,
    WEIGHT,
    find_activation,
)
from .shapes import accumulate_dtype, attention_lead, by_row, leading_shape
from .signature import SIGNATURES, Operator


def fake(name: str) -> Operator:
    """Return the fake of operator `name`, which raises for an unknown activation, as kernels do."""
    signature, compute = SIGNATURES[name], _FAKES[name]

    def call(*args: Any) -> Any:
        named = signature.named(args)
        if "activation" in named:
            find_activation(named["activation"])
        return compute(**named)

    return call


def _results(
    *, query: Tensor, key: Tensor, value: Tensor, return_weights: bool, **others: Any
) -> tuple[Tensor, ...]:
    lead = _attention_lead(query, key, value, **others)
    n, m, dv = query.shape[-2], key.shape[-2], value.shape[-1]
    weights = (*lead, n, m) if return_weights else (0,)
    return _new(query, *lead, n, dv), _new(query, *lead, n), _new(query, *weights)


def _forward(*, query: Tensor, return_weights: bool, **others: Any) -> tuple[Tensor, ...]:
    context, lse, weights = _results(query=query, return_weights=return_weights, **others)
    if not return_weights:  # what the backward needs of the softmax
        weights = _new(query, *lse.shape[:-1], 2 * lse.shape[-1])
    return context, lse, weights


def _backward(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    attn_mask: Tensor | None,
    wanted: int,
    **others: Any,
) -> tuple[Tensor, ...]:
    _attention_lead(query, key, value, weight, attn_mask=attn_mask, **others)
    mask = attn_mask.shape if attn_mask is not None and wanted & MASK else (0,)
    return (
        _gradient(query, wanted & QUERY),
        _gradient(key, wanted & KEY),
        _gradient(value, wanted & VALUE),
        _new(query, *weight.shape if wanted & WEIGHT else (0,)),
        _new(query, *mask),
    )


def _scores(*, query: Tensor, key: Tensor, weight: Tensor, **_: Any) -> Tensor:
    return _new(query, *_lead(query, key, weight), query.shape[-2], key.shape[-2])


def _scores_backward(
    *, query: Tensor, key: Tensor, weight: Tensor, wanted: int, **_: Any
) -> tuple[Tensor, ...]:
    _lead(query, key, weight)
    return (
        _gradient(query, wanted & QUERY),
        _gradient(key, wanted & KEY),
        _new(query, *weight.shape if wanted & WEIGHT else (0,)),
    )


def _pack_keys(*, key: Tensor, **_: Any) -> Tensor:
    m, d = key.shape[-2:]
    groups, width = (m + PANEL - 1) // PANEL, (d + LANE - 1) // LANE * LANE
    return _new(key, *key.shape[:-2], groups, PANEL + 1, width)


def _forward_jvp(**named: Any) -> tuple[Tensor, ...]:
    return *_results(**named), *_results(**named)


def _scores_jvp(**named: Any) -> tuple[Tensor, Tensor]:
    return _scores(**named), _scores(**named)


def _sparse_forward(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    source: Tensor,
    return_weights: bool,
    **others: Any,
) -> tuple[Tensor, ...]:
    lead = _edge_lead(query, key, value, **others)
    n, dv = query.shape[-2], (key if value is None else value).shape[-1]
    acc, count = accumulate_dtype(query.dtype), source.shape[0]
    weights = ((*lead, count), 1) if return_weights else ((*lead, n, 2), 2)  # as in _forward
    return (
        by_row(query, (*lead, n, dv), 2, acc),
        by_row(query, (*lead, n), 1, acc),
        by_row(query, *weights, acc),
    )


def _sparse_backward(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    weight: Tensor,
    edge_key: Tensor | None,
    edge_bias: Tensor | None,
    wanted: int,
    **_: Any,
) -> tuple[Tensor, ...]:
    _edge_lead(query, key, value, weight, edge_key, edge_bias)

    def gradient(x: Tensor | None, bit: int) -> Tensor:
        return by_row(x, x.shape, 2) if x is not None and wanted & bit else _new(query, 0)

    acc = accumulate_dtype(query.dtype)
    bias = edge_bias if wanted & EDGE_BIAS else None
    return (
        gradient(query, QUERY),
        gradient(key, KEY),
        gradient(value, VALUE),
        _new(query, *weight.shape if wanted & WEIGHT else (0,)),
        gradient(edge_key, EDGE_KEY),
        _new(query, 0) if bias is None else by_row(bias, bias.shape, 1, acc),
    )


def _edge_lead(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    weight: Tensor,
    edge_key: Tensor | None,
    edge_bias: Tensor | None,
    **_: Any,
) -> tuple[int, ...]:
    return _lead(
        query,
        key,
        weight,
        () if value is None else value.shape[:-2],
        () if edge_key is None else edge_key.shape[:-2],
        () if edge_bias is None else edge_bias.shape[:-1],
    )


def _sort_edges(*, ends: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    return ends.new_empty(nodes + 1), torch.empty_like(ends)


def _aligned_scores(*, query: Tensor, key: Tensor, **_: Any) -> Tensor:
    return query.new_empty(key.shape[:2])


def _aligned_scores_backward(*, query: Tensor, seen: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(seen)


_FAKES: dict[str, Operator] = {
    "forward": _forward,
    "backward": _backward,
    "scores": _scores,
    "scores_backward": _scores_backward,
    "pack_keys": _pack_keys,
    "forward_jvp": _forward_jvp,
    "scores_jvp": _scores_jvp,
    "sparse_forward": _sparse_forward,
    "sparse_backward": _sparse_backward,
    "sort_edges": _sort_edges,
    "aligned_scores": _aligned_scores,
    "aligned_scores_backward": _aligned_scores_backward,
}


def _new(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=accumulate_dtype(like.dtype))


def _lead(query: Tensor, key: Tensor, weight: Tensor, *others: tuple[int, ...]) -> tuple[int, ...]:
    return leading_shape(query.shape[:-2], key.shape[:-2], weight.shape[:-1], *others)


def _attention_lead(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **others: Any
) -> tuple[int, ...]:
    attn_mask, *bounds = (others[name] for name in ("attn_mask", "key_lengths", "key_starts"))
    return attention_lead(query, key, value, weight, attn_mask, *bounds)


def _gradient(x: Tensor, wanted: int) -> Tensor:
    return x.new_empty(x.shape) if wanted else _new(x, 0)
