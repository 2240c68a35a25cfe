"""Packed sequences: the results of one call per sequence, without padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import (
    BF16,
    BUT_TANH,
    F16,
    F32,
    F64,
    MANY,
    cumulative,
    normal,
    sliced,
    supports,
    transposed,
)
from torch import Tensor

from attnkernels import additive_attention, additive_attention_varlen
from attnkernels.testing import check_attention, check_varlen


def packed(
    lengths_q: list[int],
    lengths_k: list[int],
    d: int = 19,
    dv: int = 7,
    lead: tuple[int, ...] = (),
    dtype: torch.dtype = F32,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        normal(*lead, sum(lengths_q), d, dtype=dtype),
        normal(*lead, sum(lengths_k), d, dtype=dtype),
        normal(*lead, sum(lengths_k), dv, dtype=dtype),
        normal(d, dtype=dtype, size=d**-0.5),
        cumulative(lengths_q),
        cumulative(lengths_k),
    )


LENGTHS: dict[str, tuple[list[int], list[int]]] = {
    "one": ([5], [7]),
    "ones": ([1, 1, 1], [1, 1, 1]),
    "odd": ([3, 8, 1], [5, 2, 33]),
    "past a tile": ([MANY - 10, 3], [2 * MANY - 23, MANY]),
    "decoder steps": ([1, 1, 1, 1], [200, 3, 129, 64]),
    "a sequence without keys": ([3, 2, 4], [6, 0, 5]),
    "a sequence without queries": ([3, 0, 4], [6, 9, 5]),
    "empty at both ends": ([0, 3, 0], [0, 6, 0]),
    "no keys at all": ([3, 2], [0, 0]),
    "no sequences": ([], []),
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_lengths(backend: str, lengths: tuple[list[int], list[int]], is_causal: bool) -> None:
    check_varlen(*packed(*lengths), is_causal=is_causal, return_lse=True, backend=backend)


@pytest.mark.parametrize("dtype", [BF16, F16, F64])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    check_varlen(*packed([3, 8, 1], [50, 2, 33], dtype=dtype), backend=backend)


@pytest.mark.parametrize("activation", BUT_TANH)
def test_activations_and_scale(backend: str, activation: str) -> None:
    inputs = packed([3, 8, 1], [50, 2, 33])
    check_varlen(*inputs, activation=activation, scale=0.7, backend=backend)


def test_heads(backend: str) -> None:
    check_varlen(*packed([3, 8, 1], [50, 2, 33], lead=(2, 3)), backend=backend)
    query, key, value, _, ends_q, ends_k = packed([3, 8, 1], [50, 2, 33])
    check_varlen(
        normal(2, 1, 12, 19), key, normal(3, 85, 7), normal(3, 19), ends_q, ends_k, backend=backend
    )
    check_varlen(query, key, value, normal(4, 19), ends_q, ends_k, backend=backend)


@pytest.mark.parametrize("layout", [transposed, sliced])
def test_layouts(backend: str, layout: Any) -> None:
    query, key, value, weight, ends_q, ends_k = packed([3, 8, 1], [50, 2, 33])
    inputs = (*map(layout, (query, key, value)), weight)
    check_varlen(*inputs, ends_q.long(), ends_k.long(), backend=backend)


def test_one_call_a_sequence_gives_the_same(backend: str) -> None:
    """Packing is written out by hand, so the reference is checked too."""
    lengths_q, lengths_k = [3, 2, 4], [6, 0, 5]

    def call(
        query: Tensor, key: Tensor, value: Tensor, weight: Tensor, *ends: Tensor, **options: Any
    ) -> Any:
        parts = [
            additive_attention(*parts, weight, backend=backend, **options)
            for parts in zip(
                query.split(lengths_q), key.split(lengths_k), value.split(lengths_k), strict=True
            )
        ]
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    inputs = packed(lengths_q, lengths_k)
    check_varlen(*inputs, return_lse=True, backend=call)
    context, lse = additive_attention_varlen(*inputs, return_lse=True, backend=backend)
    assert (context[3:5] == 0).all() and lse[3:5].isneginf().all()


def test_one_sequence_is_plain_attention(backend: str) -> None:
    def call(*inputs: Tensor, **options: Any) -> Any:
        ends = cumulative([9]), cumulative([MANY])
        return additive_attention_varlen(*inputs, *ends, backend=backend, **options)

    query, key, value, weight = normal(9, 19), normal(MANY, 19), normal(MANY, 7), normal(19)
    check_attention(query, key, value, weight, is_causal=True, return_lse=True, backend=call)


def test_dropout(backend: str) -> None:
    check_varlen(*packed([3, 8, 1], [50, 2, 33], lead=(2,)), dropout_p=0.4, backend=backend)


def test_gradients_through_lse_alone(backend: str) -> None:
    check_varlen(
        *packed([3, 8, 1], [50, 2, 33]), return_lse=True, through=("lse",), backend=backend
    )


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_only_the_gradient_asked_for(backend: str, wanted: int) -> None:
    *inputs, ends_q, ends_k = packed([3, 8, 1], [50, 2, 33])
    inputs = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(inputs)]
    check_varlen(*inputs, ends_q, ends_k, backend=backend)


def test_dtypes_of_the_outputs(backend: str) -> None:
    for dtype, acc in ((F32, F32), (BF16, F32), (F64, F64)):
        if not supports(backend, dtype):
            continue
        outputs = additive_attention_varlen(
            *packed([3, 1], [5, 4], dtype=dtype, lead=(2,)), return_lse=True, backend=backend
        )
        assert [x.dtype for x in outputs] == [dtype, acc]
        assert [x.shape for x in outputs] == [(2, 4, 7), (2, 4)]


def test_no_sequences_and_a_weight_each(backend: str) -> None:
    """Nothing adds to the gradients of several weights: they are 0."""
    query, key, value = normal(3, 0, 7), normal(3, 0, 7), normal(3, 0, 4)
    weight, none = normal(3, 7), torch.zeros(1, dtype=torch.int32)
    context = additive_attention_varlen(query, key, value, weight, none, none, backend=backend)
    (found,) = torch.autograd.grad(context.sum(), weight)
    assert (found == 0).all()
