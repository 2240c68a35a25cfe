"""Rows whose scores are large: errors are at most four times those of the formula in float32.

The weights of such a row are exact in the formula, whose softmax subtracts the maximum. Weights
that are made from lse are not: it is rounded, by as much as it is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from helpers.edges import graph
from helpers.inputs import ACTIVATIONS, F32, F64, MANY
from torch import Tensor

from attnkernels import (
    additive_attention,
    additive_attention_sparse,
    additive_scores,
    prepare_edges,
)
from attnkernels.backends import native
from attnkernels.ops import codes

LOGISTIC = ["tanh", "sigmoid"]
NAMES = ("context", "weights", "query", "key", "value", "weight")
# Rows and pairs at most: an emulator takes its time, and an interpreter more of it.
MOST = {"native": (4096, 200_000), "emulated": (512, 20_000), "triton": (48, 700)}
EMULATED = native.build_info().get("instruction set") == "emulated CUDA"


def results(backend: str, inputs: list[Tensor], activation: str, weights: bool) -> list[Tensor]:
    """Return context, weights if requested, and the gradients of the inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs[:4]]
    outputs = additive_attention(
        *leaves, activation=activation, return_weights=weights, backend=backend
    )
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = torch.autograd.grad(outputs[0], leaves, inputs[4])
    return [*(x.detach() for x in outputs), *gradients]


def assert_as_accurate(name: str, found: Tensor, eager: Tensor, exact: Tensor) -> None:
    error, allowed = ((x - exact).norm().item() for x in (found, eager))
    # a result that the formula has exactly may be rounded once
    rounding = torch.finfo(F32).eps / 2 * exact.norm().item()
    assert error <= 4 * max(allowed, rounding), f"{name}: {error:.3g} against {allowed:.3g}"


@pytest.mark.parametrize("n, m", [(1, 2), (1, 33), (8, 3), (8, MANY + 10)])
@pytest.mark.parametrize("size", [40.0, 1e3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saturated_rows(backend: str, activation: str, size: float, n: int, m: int) -> None:
    weights = m > 3  # from which a backward then takes them
    rows, pairs = MOST.get("emulated" if EMULATED else backend, MOST["native"])
    batch = max(2, min(rows // n, pairs // (n * m)))
    # keys near each other: scores are large, and their differences are small, or not
    spread = 10 ** (2.5 * torch.rand(batch, 1, 1) - 1)
    query = size * torch.randn(batch, n, 8)
    key = size * torch.randn(batch, 1, 8) + spread * torch.randn(batch, m, 8)
    # a unit that is not saturated: alone, the others' gradients are too small even for float64
    query[..., 0] = 2 * torch.randn(batch, n) - key[:, :1, 0]
    value, weight = torch.randn(batch, m, 5), torch.randn(8)
    inputs = [query, key, value, weight, torch.randn(batch, n, 5)]
    exact = results("reference", [x.to(F64) for x in inputs], activation, weights)
    eager = results("reference", inputs, activation, weights)
    found = results(backend, inputs, activation, weights)
    names = NAMES if weights else (NAMES[0], *NAMES[2:])
    for name, x, y, z in zip(names, found, eager, exact, strict=True):
        assert_as_accurate(name, x, y, z)


def saturated_units(activation: str, n: int) -> list[Tensor]:
    """Return inputs, too large for exponentials of their own, whose units are near r = 1 of (E7).

    There f' is the exponential, and r - r^2 has lost it.
    """
    gain = codes.ACTIVATIONS[activation].gain
    query = torch.rand(2, n, 8) - 100
    key = 100 - (9 + 8 * torch.rand(2, 5, 8)) / gain
    return [query, key, torch.randn(2, 5, 5), torch.randn(8), torch.randn(2, n, 5)]


def assert_close(names: Sequence[str], found: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    for name, x, z in zip(names, found, exact, strict=True):
        error = (x - z).norm().item() / z.norm().item()
        assert error <= 16 * torch.finfo(F32).eps, f"{name}: {error:.3g}"


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("activation", LOGISTIC)
def test_slopes_of_saturated_units(fused: str, activation: str, n: int) -> None:
    inputs = saturated_units(activation, n)
    exact = results("reference", [x.to(F64) for x in inputs], activation, weights=False)[1:3]
    found = results(fused, inputs, activation, weights=False)[1:3]
    assert_close(("query", "key"), found, exact)


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("activation", LOGISTIC)
def test_tangents_of_saturated_units(fused: str, activation: str, n: int) -> None:
    query, key, _, weight, _ = saturated_units(activation, n)
    moves = torch.randn_like(query), torch.randn_like(key)

    def tangent(backend: str, dtype: torch.dtype) -> Tensor:
        q, k, w, dq, dk = (x.to(dtype) for x in (query, key, weight, *moves))
        scores = partial(additive_scores, weight=w, activation=activation, backend=backend)
        return torch.func.jvp(scores, (q, k), (dq, dk))[1]

    assert_close(["scores"], [tangent(fused, F32)], [tangent("reference", F64)])


@pytest.mark.parametrize("weights, dropout_p", [(False, 0.0), (False, 0.3), (True, 0.0)])
def test_large_scores_over_edges(backend: str, weights: bool, dropout_p: float) -> None:
    """Scores are whole numbers about 800, which are formed without an error."""
    edges = graph(30, 30, 400)
    query, key = torch.randint(90, 110, (2, 30, 8)), torch.randint(2, (2, 30, 8))
    value, weight = torch.randn(2, 30, 16), torch.ones(2, 8)
    leaves = [x.float().requires_grad_() for x in (query, key, value, weight)]
    directions = [torch.randn(2, 30, 16), torch.randn(2, edges.num_edges)]

    def call(name: str, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)  # of the dropout
        inputs = [x.to(dtype) for x in leaves]
        found = additive_attention_sparse(
            *inputs,
            edges=edges,
            dropout_p=dropout_p,
            return_weights=weights,
            backend=name,
        )
        found = found if isinstance(found, tuple) else (found,)
        grads = [x.to(dtype) for x, _ in zip(directions, found, strict=False)]
        return [*found, *torch.autograd.grad(found, leaves, grads)]

    exact, eager, found = call("reference", F64), call("reference", F32), call(backend, F32)
    names = NAMES if weights else (NAMES[0], *NAMES[2:])
    for name, x, y, z in zip(names, found, eager, exact, strict=True):
        assert_as_accurate(name, x, y, z)


@pytest.mark.parametrize("activation", LOGISTIC)
def test_slopes_of_saturated_units_over_edges(fused: str, activation: str) -> None:
    *inputs, direction = saturated_units(activation, 8)
    edges = prepare_edges(torch.cartesian_prod(torch.arange(5), torch.arange(8)).T, 8, 5)

    def gradients(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        context = additive_attention_sparse(
            *leaves, edges=edges, activation=activation, backend=backend
        )
        return torch.autograd.grad(context, leaves[:2], direction.to(dtype))

    assert_close(("query", "key"), gradients(fused, F32), gradients("reference", F64))
