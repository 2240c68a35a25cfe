"""NaN reaches the results in which it takes part, and no others."""

from __future__ import annotations

import pytest
import torch
from helpers.inputs import ACTIVATIONS, BF16, F32, F64, MANY, Shape, cumulative, make, normal
from torch import Tensor

from attnkernels import additive_attention, additive_attention_varlen, additive_scores

NAN, INF = float("nan"), float("inf")
SHAPES: list[Shape] = [(2, 1, 70, 19, 5), (2, 6, MANY, 20, 5)]


def poisoned(x: Tensor, where: tuple[int, ...], poison: float = NAN) -> Tensor:
    x = x.detach().clone()
    x[where] = poison
    return x.requires_grad_()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_a_query(backend: str, shape: Shape, activation: str) -> None:
    """Its own row is NaN; the other rows and the other batch entry are not."""
    query, key, value, weight = make(shape)
    query = poisoned(query, (1, 0, 3))
    context, lse = additive_attention(
        query, key, value, weight, activation=activation, return_lse=True, backend=backend
    )
    assert context[1, 0].isnan().all() and lse[1, 0].isnan()
    assert context[0].isfinite().all() and context[1, 1:].isfinite().all()
    assert lse[0].isfinite().all() and lse[1, 1:].isfinite().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_a_key(backend: str, shape: Shape, activation: str) -> None:
    """Every row that attends to the key is NaN, and one column of the scores."""
    query, key, value, weight = make(shape)
    for j in (0, shape[2] - 1):
        bad = poisoned(key, (1, j, 18))
        context, lse = additive_attention(
            query, bad, value, weight, activation=activation, return_lse=True, backend=backend
        )
        assert context[1].isnan().all() and lse[1].isnan().all()
        assert context[0].isfinite().all() and lse[0].isfinite().all()
        scores = additive_scores(query, bad, weight, activation=activation, backend=backend)
        assert scores[1, :, j].isnan().all()
        assert scores.isnan().sum() == shape[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_a_value(backend: str, shape: Shape) -> None:
    """One column of one context is NaN; the weights are not."""
    query, key, value, weight = make(shape)
    context, weights, lse = additive_attention(
        query,
        key,
        poisoned(value, (1, shape[2] - 4, 2)),
        weight,
        return_weights=True,
        return_lse=True,
        backend=backend,
    )
    assert context[1, :, 2].isnan().all()
    assert int(context.isnan().sum()) == shape[1]
    assert weights.isfinite().all() and lse.isfinite().all()


@pytest.mark.parametrize("poison", [INF, -INF])
@pytest.mark.parametrize("dtype", [F32, BF16, F64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_infinite_value(backend: str, shape: Shape, dtype: torch.dtype, poison: float) -> None:
    """One column of one context is infinite, and not NaN: all weights are positive."""
    query, key, value, weight = make(shape, dtype)
    for j in (0, shape[2] - 1):
        bad = poisoned(value, (1, j, 2), poison)
        context = additive_attention(query, key, bad, weight, backend=backend)
        assert (context[1, :, 2] == poison).all()
        assert int((~context.isfinite()).sum()) == shape[1]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_the_weight(backend: str, activation: str) -> None:
    query, key, value, weight = make((2, 6, MANY, 20, 5))
    context, lse = additive_attention(
        query,
        key,
        value,
        poisoned(weight, (7,)),
        activation=activation,
        return_lse=True,
        backend=backend,
    )
    assert context.isnan().all() and lse.isnan().all()


def test_in_a_float_mask(backend: str) -> None:
    mask = poisoned(torch.zeros(6, MANY), (2, MANY - 10))
    context = additive_attention(*make((2, 6, MANY, 20, 5)), attn_mask=mask, backend=backend)
    assert context[:, 2].isnan().all()
    assert int(context.isnan().sum()) == context[:, 2].numel()


def test_opposite_infinities_are_nan(backend: str) -> None:
    """inf - inf has no sum: NaN in that pair, as in the reference."""
    for n, m in ((1, 70), (6, MANY)):
        query, key, _, weight = make((1, n, m, 20, 1))
        scores = additive_scores(
            poisoned(query, (0, 0, 3), INF),
            poisoned(key, (0, m - 5, 3), -INF),
            weight,
            backend=backend,
        )
        assert scores[0, 0, m - 5].isnan()
        assert int(scores.isnan().sum()) == 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_the_gradients(backend: str, shape: Shape, activation: str) -> None:
    """A NaN query row reaches every key of its entry and no other entry's gradients."""
    query, key, value, weight = make(shape)
    inputs = (poisoned(query, (1, 0, 3)), key, value, weight)
    context = additive_attention(*inputs, activation=activation, backend=backend)
    dq, dk, dv, dw = torch.autograd.grad(context.sum(), inputs)
    # max(x, 0) propagates nothing if x <= 0, not even NaN: one hidden unit of each row is enough
    assert dq[1, 0].isnan().any() and dk[1].isnan().any(-1).all()
    assert dv[1].isnan().all() and dw.isnan().all()
    assert dq[0].isfinite().all() and dq[1, 1:].isfinite().all()
    assert dk[0].isfinite().all() and dv[0].isfinite().all()


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [F32, BF16, F64])
@pytest.mark.parametrize("shape", [(3, 1, 300, 19, 5), (3, 40, 150, 20, 5)], ids=str)
def test_padding_is_never_looked_at(
    backend: str, shape: Shape, dtype: torch.dtype, poison: float
) -> None:
    """Padding may hold anything: results have the same bits, and its gradients are exactly 0."""
    query, key, value, weight = make(shape, dtype, grad=False)
    m = shape[2]
    lengths = torch.tensor([m, 129, 0])
    padding = torch.arange(m) >= lengths[:, None]
    results = []
    for filler in (0.0, poison):
        inputs = [x.clone().requires_grad_() for x in (query, key, value, weight)]
        with torch.no_grad():
            for x in inputs[1:3]:
                x[padding] = filler
        outputs = additive_attention(
            *inputs, key_lengths=lengths, return_weights=True, return_lse=True, backend=backend
        )
        loss = (
            outputs[0].float().square().sum()
            + outputs[1].float().square().sum()
            + outputs[2][:2].sum()
        )
        gradients = torch.autograd.grad(loss, inputs)
        assert (gradients[1][padding] == 0).all() and (gradients[2][padding] == 0).all()
        results.append((*outputs, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_nan_query_with_nothing_to_look_at(backend: str) -> None:
    query, key, value, weight = make((2, 6, MANY, 20, 5))
    context, lse = additive_attention(
        torch.full_like(query, NAN),
        key,
        value,
        weight,
        key_lengths=torch.zeros(2, dtype=torch.long),
        return_lse=True,
        backend=backend,
    )
    assert (context == 0).all() and lse.isneginf().all()


def test_causal_rows_before_a_nan_key(backend: str) -> None:
    query, key, value, weight = make((1, 40, 150, 20, 5))
    context = additive_attention(
        query, poisoned(key, (0, 30, 3)), value, weight, is_causal=True, backend=backend
    )
    assert context[0, :30].isfinite().all() and context[0, 30:].isnan().all()


def test_packed_sequences_keep_it_to_themselves(backend: str) -> None:
    query, key, value, weight = normal(9, 20), normal(60, 20), normal(60, 5), normal(20)
    inputs = (poisoned(query, (2, 3)), poisoned(key, (50, 3)), value, weight)
    context = additive_attention_varlen(
        *inputs, cumulative([4, 3, 2]), cumulative([33, 7, 20]), backend=backend
    )
    bad = torch.zeros(9, dtype=torch.bool)
    bad[2] = bad[7:] = True
    assert context[bad].isnan().all() and context[~bad].isfinite().all()
    dq, dk, dv, _ = torch.autograd.grad(context.sum(), inputs)
    for gradient, part in ((dq, slice(4, 7)), (dk, slice(33, 40)), (dv, slice(33, 40))):
        assert gradient[part].isfinite().all()


@pytest.mark.parametrize("poison", [NAN, INF])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_the_gradients_of_scores(
    backend: str, shape: Shape, activation: str, poison: float
) -> None:
    """A key, or a query, that is not finite leaves the gradients of the others alone."""
    query, key, _, weight = make(shape)
    for bad in (query, key):
        rows = bad.shape[1]
        for row in {0, rows - 1}:
            inputs = [poisoned(x, (1, row, 3), poison) if x is bad else x for x in (query, key)]
            scores = additive_scores(*inputs, weight, activation=activation, backend=backend)
            gradients = torch.autograd.grad(scores, inputs, torch.randn_like(scores))
            of_bad = gradients[0 if bad is query else 1]
            assert of_bad[0].isfinite().all()
            assert of_bad[1, torch.arange(rows) != row].isfinite().all()
            for x in gradients:  # hidden units do not mix
                assert x[..., torch.arange(x.shape[-1]) != 3].isfinite().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n", [3, 40])
def test_in_the_gradients_of_pairs_that_take_no_part(backend: str, n: int, activation: str) -> None:
    """A row that sees no NaN has finite gradients, and adds finite ones to its keys."""
    if backend == "reference":
        pytest.skip("the formula multiplies NaN by 0")
    query, key, value, weight = make((2, n, n, 20, 5))
    last = n - 1
    bad_query, bad_key = poisoned(query, (1, last, 3)), poisoned(key, (1, last, 3))
    inputs: tuple[Tensor, ...] = (query[:, :last], bad_key, value, weight)
    context = additive_attention(*inputs, is_causal=True, activation=activation, backend=backend)
    gradients = torch.autograd.grad(context.sum(), inputs)
    assert all(x.isfinite().all() for x in gradients) and (gradients[1][:, last] == 0).all()

    seen = torch.zeros(n, n, dtype=torch.bool)
    seen[:last, :last] = seen[last, last] = True
    for inputs in ((query, bad_key, value, weight), (bad_query, key, value, weight)):
        context = additive_attention(
            *inputs, attn_mask=seen, activation=activation, backend=backend
        )
        dq, dk, _, _ = torch.autograd.grad(context.sum(), inputs)
        assert dq[:, :last].isfinite().all() and dk[:, :last].isfinite().all()
        assert dq[1, last].isnan().any() and dk[1, last].isnan().any()


@pytest.mark.parametrize("poison", [NAN, INF])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n", [2, 40])
@pytest.mark.parametrize("lead", [(), (3,)], ids=["one weight", "a weight each"])
def test_in_the_weight_without_pairs(
    backend: str, lead: tuple[int, ...], n: int, activation: str, poison: float
) -> None:
    """Padded keys, and rows that see nothing, have gradients of exactly 0."""
    if backend == "reference":
        pytest.skip("the formula multiplies NaN by 0")
    query, key, value, weight = make((3, n, 100, 20, 5))
    weight = poisoned(weight.detach().expand(*lead, 20), (*[0] * len(lead), 7), poison)
    lengths = torch.tensor([50, 70, 0])
    inputs = (query, key, value, weight)
    context = additive_attention(
        *inputs, key_lengths=lengths, activation=activation, backend=backend
    )
    dq, dk, dv, _ = torch.autograd.grad(context.sum(), inputs)
    padding = torch.arange(100) >= lengths[:, None]
    assert (dk[padding] == 0).all() and (dv[padding] == 0).all() and (dq[2] == 0).all()
