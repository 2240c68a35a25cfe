"""Calls as users write them, for a type checker alone: test_types runs mypy over this file."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import assert_type

from attnkernels import (
    AdditiveMemory,
    additive_attention,
    additive_attention_sparse,
    additive_attention_varlen,
    additive_scores,
    prepare_edges,
    prepare_keys,
)

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def dense(q: Tensor, k: Tensor, v: Tensor, w: Tensor, flag: bool) -> None:
    assert_type(additive_attention(q, k, v, w), Tensor)
    assert_type(additive_attention(query=q, key=k, value=v, weight=w), Tensor)
    assert_type(additive_attention(q, k, v, w, is_causal=True, scale=0.5), Tensor)
    assert_type(additive_attention(q, k, v, w, window_size=(3, -1)), Tensor)
    assert_type(additive_attention(q, k, v, w, return_weights=False, return_lse=False), Tensor)
    assert_type(additive_attention(q, k, v, w, return_weights=True, attn_mask=q), Pair)
    assert_type(additive_attention(q, k, v, w, return_lse=True, dropout_p=0.1), Pair)
    assert_type(additive_attention(q, k, v, w, return_weights=False, return_lse=True), Pair)
    assert_type(additive_attention(q, k, v, w, return_weights=True, return_lse=True), Triple)
    assert_type(additive_attention(q, k, v, w, return_weights=flag), Tensor | Pair)
    assert_type(additive_attention(q, k, v, w, return_lse=flag), Tensor | Pair | Triple)
    context, weights = additive_attention(q, k, v, w, activation="relu", return_weights=True)
    assert_type(context @ weights, Tensor)
    additive_attention(q, k, v, w, activation="nonesuch")  # type: ignore[call-overload]
    additive_attention(q, k, v, w, slope=0.1)  # type: ignore[call-overload]
    additive_attention(q, k, v, w, scale="1")  # type: ignore[call-overload]
    additive_attention(q, k, v)  # type: ignore[call-overload]


def scores(q: Tensor, k: Tensor, w: Tensor) -> None:
    assert_type(additive_scores(q, k, w, activation="leaky_relu", negative_slope=0.1), Tensor)
    additive_scores(q, k, w, return_lse=True)  # type: ignore[call-arg]


def packed(q: Tensor, k: Tensor, v: Tensor, w: Tensor, cu: Tensor, flag: bool) -> None:
    assert_type(additive_attention_varlen(q, k, v, w, cu, cu), Tensor)
    assert_type(additive_attention_varlen(q, k, v, w, cu, cu, window_size=(0, 2)), Tensor)
    assert_type(additive_attention_varlen(q, k, v, w, cu, cu, is_causal=True), Tensor)
    assert_type(additive_attention_varlen(q, k, v, w, cu, cu, return_lse=True), Pair)
    assert_type(additive_attention_varlen(q, k, v, w, cu, cu, return_lse=flag), Tensor | Pair)
    additive_attention_varlen(q, k, v, w, cu, cu, return_weights=True)  # type: ignore[call-overload]


def decoder(q: Tensor, k: Tensor, v: Tensor, w: Tensor, flag: bool) -> None:
    memory = prepare_keys(k, v, w, key_lengths=None, activation="sigmoid")
    assert_type(memory, AdditiveMemory)
    assert_type(memory.attend(q), Tensor)
    assert_type(memory.attend(q, dropout_p=0.1), Tensor)
    assert_type(memory.attend(q, return_weights=True), Pair)
    assert_type(memory.attend(q, return_lse=True), Pair)
    assert_type(memory.attend(q, return_weights=True, return_lse=True), Triple)
    assert_type(memory.attend(q, return_weights=flag), Tensor | Pair)
    assert_type(memory.attend(q, return_lse=flag), Tensor | Pair | Triple)
    assert_type(memory.index_select(0, q), AdditiveMemory)
    memory.attend(q, is_causal=True)  # type: ignore[call-overload]


def sparse(q: Tensor, k: Tensor, w: Tensor, index: Tensor, flag: bool) -> None:
    edges = prepare_edges(index, 5, 6)
    assert_type(additive_attention_sparse(q, k, k, w, edges), Tensor)
    assert_type(additive_attention_sparse(q, k, k, w, edges, edge_bias=q, dropout_p=0.1), Tensor)
    assert_type(additive_attention_sparse(q, k, k, w, edges, return_weights=True), Pair)
    assert_type(additive_attention_sparse(q, k, k, w, edges, return_lse=True), Pair)
    assert_type(
        additive_attention_sparse(q, k, k, w, edges, return_weights=True, return_lse=True), Triple
    )
    assert_type(
        additive_attention_sparse(q, k, k, w, edges, return_lse=flag), Tensor | Pair | Triple
    )
    assert_type(edges.n, int)
