"""Raw scores (E1), as pointer networks use them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.inputs import (
    ACTIVATIONS,
    BF16,
    BUT_TANH,
    CORNERS,
    F16,
    F32,
    F64,
    Shape,
    make,
    normal,
    sliced,
    transposed,
)
from torch import Tensor

from attnkernels import additive_scores
from attnkernels.testing import assert_within_budget, check_attention, check_scores


@pytest.mark.parametrize("shape", CORNERS, ids=str)
def test_shapes(backend: str, shape: Shape) -> None:
    query, key, _, weight = make(shape)
    check_scores(query, key, weight, backend=backend)


@pytest.mark.parametrize("dtype", [BF16, F16, F64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dtypes_and_activations(backend: str, dtype: torch.dtype, activation: str) -> None:
    query, key, _, weight = make((2, 5, 40, 19, 1), dtype)
    check_scores(query, key, weight, activation=activation, backend=backend)


@pytest.mark.parametrize("activation", BUT_TANH)
def test_activations(backend: str, activation: str) -> None:
    query, key, _, weight = make((1, 33, 140, 33, 1))
    check_scores(
        query, key, weight, activation=activation, negative_slope=0.3, scale=-1.3, backend=backend
    )


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "leaky_relu"])
def test_equal_weights(backend: str, activation: str) -> None:
    """Their products round alike, and so would sums of r of (E7), which is near 1/2."""
    query, key, _, _ = make((1, 9, 20, 520, 1))
    weight = torch.full((520,), 520**-0.5).requires_grad_()
    check_scores(query, key, weight, activation=activation, backend=backend)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "leaky_relu"])
@pytest.mark.parametrize("d", [15, 130, 520])
def test_equal_hidden_units(backend: str, activation: str, d: int) -> None:
    """Rounding errors of equal terms have one sign."""
    query, key, _, _ = make((1, 9, 20, d, 1))
    query = query.detach()[..., :1].expand(1, 9, d).requires_grad_()
    weight = torch.full((d,), d**-0.5).requires_grad_()
    check_scores(query, key, weight, activation=activation, negative_slope=0.3, backend=backend)


@pytest.mark.parametrize("shape", [(2, 0, 3, 4, 1), (2, 3, 0, 4, 1), (0, 3, 4, 5, 1)], ids=str)
def test_empty(backend: str, shape: Shape) -> None:
    query, key, _, weight = make(shape)
    scores = additive_scores(query, key, weight, backend=backend)
    assert scores.shape == shape[:3]
    for gradient in torch.autograd.grad(scores.sum(), (query, key, weight)):
        assert (gradient == 0).all()


def test_leading_dimensions_broadcast(backend: str) -> None:
    for q, k, w in [((2, 1), (1, 3), ()), ((), (), (3,)), ((2, 3), (2, 3), (3,)), ((), (4,), ())]:
        query, key, weight = normal(*q, 5, 18), normal(*k, 37, 18), normal(*w, 18)
        check_scores(query, key, weight, backend=backend)


@pytest.mark.parametrize("layout", [transposed, sliced])
def test_layouts(backend: str, layout: object) -> None:
    query, key, _, weight = make((3, 5, 40, 19, 1))
    check_scores(layout(query), layout(key), weight, backend=backend)


def test_expanded(backend: str) -> None:
    query, key, _, weight = make((3, 5, 40, 19, 1), grad=False)
    inputs = (query[:1].expand(3, 5, 19), key[:, :1].expand(3, 40, 19), weight[:1].expand(19))
    check_scores(*(x.requires_grad_() for x in inputs), backend=backend)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_the_gradient_asked_for(backend: str, wanted: int) -> None:
    query, key, _, weight = make((2, 5, 40, 19, 1), grad=False)
    inputs = (query, key, weight)
    inputs[wanted].requires_grad_()
    check_scores(*inputs, backend=backend)


def test_scores_are_what_attention_sees(backend: str) -> None:
    """(E2) and (E3), applied to the scores by hand, give attention."""

    def call(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Any) -> Any:
        scores = additive_scores(query, key, weight, backend=backend, **options)
        weights = scores.softmax(-1)
        return weights @ value, weights, scores.logsumexp(-1)

    def attend(*inputs: Tensor, return_weights: bool, return_lse: bool, **options: Any) -> Any:
        return call(*inputs, **options)

    check_attention(
        *make((2, 5, 40, 19, 7)),
        activation="leaky_relu",
        negative_slope=0.1,
        scale=0.8,
        return_weights=True,
        return_lse=True,
        backend=attend,
    )


def test_written_out(backend: str) -> None:
    """Compare with the formula written out by hand, independent of the oracle."""
    query, key = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.25, 2.0]])
    weight = torch.tensor([2.0, -3.0])
    hidden = {
        "tanh": (math.tanh(0.75), math.tanh(1.0)),
        "sigmoid": (1 / (1 + math.exp(-0.75)), 1 / (1 + math.exp(-1.0))),
        "relu": (0.75, 1.0),
        "leaky_relu": (0.75, 1.0),
    }
    for activation, (first, second) in hidden.items():
        exact = torch.tensor([[0.5 * (2.0 * first - 3.0 * second)]], dtype=F64)
        found = additive_scores(
            query, key, weight, activation=activation, scale=0.5, backend=backend
        )
        assert_within_budget(found, exact.float(), exact, magnitude=2.5)
    below = additive_scores(-query, -key, weight, activation="leaky_relu", backend=backend)
    exact = torch.tensor([[-0.2 * (2.0 * 0.75 - 3.0)]], dtype=F64)
    assert_within_budget(below, exact.float(), exact, magnitude=1.0)


def test_autocast_and_dtype(backend: str) -> None:
    query, key, _, weight = make((2, 5, 40, 19, 1))
    with torch.autocast("cpu", BF16):
        assert additive_scores(query, key, weight, backend=backend).dtype == BF16
    assert additive_scores(query, key, weight, backend=backend).dtype == F32
