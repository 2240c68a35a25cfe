"""Gradients that are zero are 0, and those near zero are as exact as the formula's.

The gradient of a score is a difference. Where a key has all of a row's weight, the terms are equal,
and noise in their place is a gradient of random sign: Adam makes whole steps of it.
"""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F16, F32, F64, MANY, cumulative, make, normal
from torch import Tensor
from torch.nn.functional import linear

from attnkernels import additive_attention, additive_attention_varlen, additive_scores
from attnkernels.testing import oracle

NAMES = ("query", "key", "value", "weight")
DROPPED: dict[str, Any] = {"dropout_p": 0.4, "return_weights": True}


def one_key(name: str, batch: int, n: int, dtype: torch.dtype) -> tuple[int, dict[str, Any]]:
    """Return (m, options) with which every query sees a single key."""
    visible = torch.zeros(batch, n, MANY, dtype=torch.bool)
    visible.scatter_(-1, torch.randint(MANY, (batch, n, 1)), True)
    bias = torch.where(visible, torch.randn(visible.shape), -torch.inf)
    return {
        "alone": (1, {}),
        "lengths": (MANY, {"key_lengths": torch.ones(batch, dtype=torch.long)}),
        "bool mask": (MANY, {"attn_mask": visible}),
        "float mask": (MANY, {"attn_mask": bias.to(dtype).requires_grad_()}),
        "shared mask": (1, {"attn_mask": normal(1, 1, dtype=dtype)}),
    }[name]


def gradients(outputs: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Return the gradients of `inputs` for a random gradient of every output."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return list(torch.autograd.grad(outputs, inputs, [torch.randn_like(x) for x in outputs]))


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("name", ["alone", "lengths", "bool mask", "float mask", "shared mask"])
def test_a_single_key(backend: str, name: str, n: int, dropped: bool, dtype: torch.dtype) -> None:
    m, options = one_key(name, 2, n, dtype)
    inputs = list(make((2, n, m, 19, 37), dtype))
    mask = options.get("attn_mask")
    if mask is not None and mask.requires_grad:
        inputs.append(mask)
    options |= DROPPED if dropped else {}
    outputs = additive_attention(*inputs[:4], **options, backend=backend)
    query, key, value, weight, *of_mask = gradients(outputs, inputs)
    assert all((x == 0).all() for x in (query, key, weight, *of_mask))
    assert dropped or (value != 0).any()


@pytest.mark.parametrize("options", [{}, DROPPED], ids=["plain", "dropped"])
def test_the_first_row_of_a_causal_call(backend: str, options: dict[str, Any]) -> None:
    inputs = make((2, 6, MANY, 20, 5))
    outputs = additive_attention(*inputs, is_causal=True, **options, backend=backend)
    first = [x[:, 0] for x in (outputs if isinstance(outputs, tuple) else (outputs,))]
    query, key, _, weight = gradients(tuple(first), list(inputs))
    assert all((x == 0).all() for x in (query, key, weight))


def test_packed_sequences_of_one_key(backend: str) -> None:
    inputs = [normal(9, 20), normal(4, 20), normal(4, 33), normal(20)]
    context = additive_attention_varlen(
        *inputs, cumulative([3, 0, 5, 1]), cumulative([1, 1, 1, 1]), backend=backend
    )
    query, key, _, weight = gradients(context, inputs)
    assert all((x == 0).all() for x in (query, key, weight))


@pytest.mark.parametrize("n", [1, 6])
def test_the_gradient_of_lse_passes_whole(backend: str, n: int) -> None:
    """A single key has the gradient of lse to the last bit, whatever else reaches the row."""
    query, key, value, weight = make((2, n, 1, 19, 37), size=4.0)
    mask = normal(2, n, 1)
    outputs = additive_attention(
        query, key, value, weight, attn_mask=mask, return_lse=True, **DROPPED, backend=backend
    )
    directions = [torch.randn_like(x) for x in outputs]
    (found,) = torch.autograd.grad(outputs, [mask], directions)
    assert torch.equal(found.squeeze(-1), directions[2])


@pytest.mark.parametrize("n", [1, 6])
def test_a_value_that_is_not_finite(backend: str, n: int) -> None:
    query, key, value, weight = make((2, n, 1, 19, 5))
    for poison in (float("nan"), float("inf")):
        bad = value.detach().clone()
        bad[1, 0, 2] = poison
        context = additive_attention(query, key, bad, weight, backend=backend)
        dq, dk, dw = torch.autograd.grad(context.sum(), [query, key, weight])
        assert (dq[0] == 0).all() and (dk[0] == 0).all()
        assert dq[1].isnan().all() and dk[1].isnan().all() and dw.isnan().all()


@pytest.mark.parametrize("options", [{}, {"return_weights": True}], ids=["plain", "weights"])
@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("tail", [1e-3, 1e-5, 1e-7, 1e-10])
def test_nearly_a_single_key(backend: str, tail: float, n: int, options: dict[str, Any]) -> None:
    """The others have a share of `tail`: the errors are at most four times the formula's."""
    inputs = dict(zip(NAMES, make((6, n, 3, 8, 96)), strict=True))
    mask = torch.full((6, n, 3), log(tail))
    mask.scatter_(-1, torch.randint(3, (6, n, 1)), 0.0)
    options = options | {"attn_mask": mask.requires_grad_()}
    outputs = ("context", "weights") if len(options) > 1 else ("context",)
    directions = {"context": torch.randn(6, n, 96), "weights": torch.randn(6, n, 3)}
    directions = {name: directions[name] for name in outputs}
    exact = oracle(additive_attention, inputs, options, outputs, directions)

    def errors(name: str) -> dict[str, float]:
        found = additive_attention(*inputs.values(), **options, backend=name)
        found = found if isinstance(found, tuple) else (found,)
        leaves = inputs | {"attn_mask": mask}
        of_leaves = torch.autograd.grad(found, list(leaves.values()), list(directions.values()))
        return {
            leaf: (g.double() - exact[f"gradient of {leaf}"]).abs().max().item()
            for leaf, g in zip(leaves, of_leaves, strict=True)
        }

    allowed = errors("reference")
    for name, error in errors(backend).items():
        assert error <= 4 * allowed[name], name


@pytest.mark.parametrize("n, m", [(1, 7), (2, 200), (40, MANY), (70, 19)])
def test_a_hidden_unit_that_is_zero(backend: str, n: int, m: int) -> None:
    """tanh(0) adds nothing to the gradient of weight."""
    query, key, value, weight = make((2, n, m, 24, 5))
    with torch.no_grad():
        query[..., 5:8] = key[..., 5:8] = 0
    context = additive_attention(query, key, value, weight, backend=backend)
    scores = additive_scores(query, key, weight, backend=backend)
    for output in (context, scores):
        (found,) = torch.autograd.grad(output, weight, torch.randn_like(output))
        assert (found[5:8] == 0).all() and (found != 0).sum() == 21


def test_adam_leaves_what_has_no_gradient(backend: str) -> None:
    """200 steps on 32 sequences of one key: only the values learn."""
    steps = 200 if backend != "triton" else 4  # an interpreter takes its time
    sequences = torch.randn(32, 1, 7)
    queries, target = torch.randn(32, 1, 5), torch.randn(32, 1, 6)
    parameters = [normal(8, 5), normal(8, 7), normal(6, 7), normal(8)]
    before = [x.detach().clone() for x in parameters]
    adam = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(steps):
        of_query, of_key, of_value, weight = parameters
        context = additive_attention(
            linear(queries, of_query),
            linear(sequences, of_key),
            linear(sequences, of_value),
            weight,
            backend=backend,
        )
        adam.zero_grad()
        (context - target).square().mean().backward()
        adam.step()
    same = [torch.equal(x, y) for x, y in zip(parameters, before, strict=True)]
    assert same == [True, True, False, True]
