"""First and second derivatives against finite differences, through every output and option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import ACTIVATIONS, F64, cumulative, make, normal
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from attnkernels import additive_attention, additive_attention_varlen, additive_scores
from attnkernels.backends import BACKENDS
from attnkernels.backends.base import Problem

SHAPE = (2, 2, 3, 3, 2)
Call = Callable[..., Any]


@pytest.fixture
def backend64(backend: str) -> str:
    module = next(module for module in BACKENDS if backend == module.NAME)
    sentence = module.why_not(Problem("cpu", F64))
    if sentence is not None:
        pytest.skip(sentence)
    return backend


def twice(call: Call, inputs: tuple[Tensor, ...]) -> None:
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs, fast_mode=True)


def attention(backend: str, **options: Any) -> Call:
    """Return context, weights and lse of one seeded call, with 0 for the -inf of an empty row."""

    def call(
        query: Tensor, key: Tensor, value: Tensor, weight: Tensor, mask: Tensor | None = None
    ) -> Any:
        torch.manual_seed(7)
        context, weights, lse = additive_attention(
            query,
            key,
            value,
            weight,
            **({"attn_mask": mask} if mask is not None else {}),
            return_weights=True,
            return_lse=True,
            backend=backend,
            **options,
        )
        return context, weights, torch.where(lse.isneginf(), torch.zeros_like(lse), lse)

    return call


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": -0.7},
    "sigmoid": {"activation": "sigmoid"},
    "relu": {"activation": "relu"},
    "leaky_relu": {"activation": "leaky_relu", "negative_slope": 0.3},
    "dropout": {"dropout_p": 0.4},
    "causal": {"is_causal": True},
    "a window": {"window_size": (0, 1)},
    "lengths 0 and 2": {"key_lengths": torch.tensor([0, 2])},
    "a masked row": {"attn_mask": torch.tensor([[False] * 3, [False, True, True]])},
    "all at once": {
        "attn_mask": torch.tensor([[True, False, True]]),
        "key_lengths": torch.tensor([3, 1]),
        "is_causal": True,
        "dropout_p": 0.3,
        "scale": 1.5,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attention(backend64: str, options: dict[str, Any]) -> None:
    twice(attention(backend64, **options), make(SHAPE, F64))


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 1, 3), (2, 2, 1), (2, 3), (3,), ()], ids=str)
def test_the_gradient_of_a_float_mask(backend64: str, shape: tuple[int, ...]) -> None:
    mask = normal(*shape, dtype=F64)
    twice(attention(backend64), (*make(SHAPE, F64), mask))


def test_a_float_mask_with_minus_infinity(backend64: str) -> None:
    """The mask is built from finite numbers inside the call: differences of -inf are NaN."""
    excluded = torch.tensor([[False, True, False], [True] * 3])

    def call(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, part: Tensor) -> Any:
        mask = part.masked_fill(excluded, float("-inf"))
        return attention(backend64)(query, key, value, weight, mask)

    twice(call, (*make(SHAPE, F64), normal(2, 3, dtype=F64)))


@pytest.mark.parametrize("output", [0, 1, 2], ids=["context", "weights", "lse"])
def test_one_output_alone(backend64: str, output: int) -> None:
    twice(lambda *inputs: attention(backend64)(*inputs)[output], make(SHAPE, F64))


@pytest.mark.parametrize("wanted", [0, 1, 2, 3], ids=["query", "key", "value", "weight"])
def test_one_input_alone(backend64: str, wanted: int) -> None:
    inputs = make(SHAPE, F64, grad=False)
    inputs[wanted].requires_grad_()
    twice(attention(backend64), inputs)


def test_context_without_weights(backend64: str) -> None:
    """Test the fused path, which forms nothing of size n m."""

    def call(*inputs: Tensor) -> Tensor:
        return additive_attention(*inputs, is_causal=True, backend=backend64)

    twice(call, make(SHAPE, F64))


def test_broadcast_heads(backend64: str) -> None:
    inputs = (
        normal(2, 1, 2, 3, dtype=F64),
        normal(1, 2, 3, 3, dtype=F64),
        normal(3, 2, dtype=F64),
        normal(2, 3, dtype=F64),
    )
    twice(attention(backend64), inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scores(backend64: str, activation: str) -> None:
    query, key, _, weight = make(SHAPE, F64)
    options = {"activation": activation, "scale": 0.6, "backend": backend64}
    twice(lambda *inputs: additive_scores(*inputs, **options), (query, key, weight))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_p": 0.4}], ids=str)
def test_varlen(backend64: str, options: dict[str, Any]) -> None:
    """Test three sequences, one of them without a key."""
    ends_q, ends_k = cumulative([2, 1, 1]), cumulative([3, 0, 2])

    def call(*inputs: Tensor) -> Any:
        torch.manual_seed(7)
        context, lse = additive_attention_varlen(
            *inputs, ends_q, ends_k, return_lse=True, backend=backend64, **options
        )
        return context, torch.where(lse.isneginf(), torch.zeros_like(lse), lse)

    inputs = (
        normal(4, 3, dtype=F64),
        normal(5, 3, dtype=F64),
        normal(5, 2, dtype=F64),
        normal(3, dtype=F64),
    )
    twice(call, inputs)
