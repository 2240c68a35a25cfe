"""Dropout: Philox4x32-10 at every (b, i, j), torch's generator as seed, one mask in both passes."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.inputs import BF16, F32, F64, cumulative, make, normal
from helpers.philox import WORD, keep_mask, next_seed, philox4x32_10

from attnkernels import additive_attention, additive_attention_varlen
from attnkernels.ops.dropout import philox
from attnkernels.testing import assert_within_budget, check_attention


def test_the_second_opinion_knows_the_published_answers() -> None:
    """Compare with Random123's known-answer vectors."""
    assert philox4x32_10((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = philox4x32_10((WORD,) * 4, (WORD,) * 2)
    assert ones == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


def test_the_reference_agrees_on_every_word() -> None:
    """Compare any counter and key, with high words that only huge attentions would reach."""
    words = torch.randint(0, 2**32, (64, 6))
    words[0], words[1] = 0, WORD
    found = torch.stack(philox(tuple(words.T[:4]), tuple(words.T[4:])), -1)
    for row, answer in zip(words.tolist(), found.tolist(), strict=True):
        assert philox4x32_10(tuple(row[:4]), tuple(row[4:])) == tuple(answer)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_bits(backend: str, p: float) -> None:
    """Use two leading dimensions, so that b is the flat index, and m not a multiple of four."""
    query, key = normal(2, 1, 5, 3), normal(1, 3, 7, 3)
    value, weight = normal(7, 2), normal(3)
    seed = next_seed(11)
    options = {"dropout_p": p, "return_weights": True, "backend": backend}
    _, weights = additive_attention(query, key, value, weight, **options)
    kept = keep_mask(seed, p, 6, 5, 7).reshape(2, 3, 5, 7)
    assert torch.equal(weights != 0, kept)


def test_bits_past_a_tile(backend: str) -> None:
    query, key, value, weight = make((1, 3, 301, 2, 1))
    seed = next_seed(12)
    _, weights = additive_attention(
        query, key, value, weight, dropout_p=0.25, return_weights=True, backend=backend
    )
    assert torch.equal(weights != 0, keep_mask(seed, 0.25, 1, 3, 301))


def test_bits_of_packed_sequences(backend: str) -> None:
    """b = flat lead * sequences + sequence; i, j count in it. value = 1 shows the weights."""
    lengths_q, lengths_k, heads = [3, 0, 5], [6, 4, 9], 2
    query, key, weight = normal(heads, 8, 3), normal(heads, 19, 3), normal(3)
    seed = next_seed(13)
    context = additive_attention_varlen(
        query,
        key,
        torch.eye(19),
        weight,
        cumulative(lengths_q),
        cumulative(lengths_k),
        dropout_p=0.5,
        backend=backend,
    )
    starts_q, starts_k = cumulative(lengths_q).tolist(), cumulative(lengths_k).tolist()
    for head in range(heads):
        for s, (nq, nk) in enumerate(zip(lengths_q, lengths_k, strict=True)):
            rows = context[head, starts_q[s] : starts_q[s] + nq]
            shown = rows[:, starts_k[s] : starts_k[s] + nk] != 0
            kept = keep_mask(seed, 0.5, heads * 3, max(nq, 1), nk)[head * 3 + s, :nq]
            assert torch.equal(shown, kept)
            assert int((rows != 0).sum()) == int(kept.sum())


@pytest.mark.parametrize("dtype", [F32, BF16, F64])
def test_bits_do_not_depend_on_the_dtype(backend: str, dtype: torch.dtype) -> None:
    query, key, value, weight = make((2, 3, 9, 4, 2), dtype)
    seed = next_seed(14)
    _, weights = additive_attention(
        query, key, value, weight, dropout_p=0.5, return_weights=True, backend=backend
    )
    assert torch.equal(weights != 0, keep_mask(seed, 0.5, 2, 3, 9))


def test_statistics(backend: str) -> None:
    """Check the keep rate within five sigma, overall and for each of the four words."""
    p, n, m = 0.3, 256, 400
    query, key, value, weight = make((1, n, m, 1, 1))
    _, weights = additive_attention(
        query, key, value, weight, dropout_p=p, return_weights=True, backend=backend
    )
    kept = (weights[0] != 0).double()
    for part in (kept, *(kept[:, word::4] for word in range(4))):
        sigma = math.sqrt(p * (1 - p) / part.numel())
        assert abs(float(part.mean()) - (1 - p)) < 5 * sigma


def test_outputs_and_gradients(backend: str) -> None:
    for shape in ((2, 3, 9, 4, 2), (1, 1, 300, 8, 3), (1, 40, 150, 5, 3)):
        check_attention(*make(shape), dropout_p=0.4, backend=backend)
        check_attention(
            *make(shape), dropout_p=0.4, return_weights=True, return_lse=True, backend=backend
        )


def test_kept_weights_are_scaled_and_lse_is_before_dropout(backend: str) -> None:
    """The returned weights are those that were used, computed by hand."""
    inputs = make((2, 3, 9, 4, 2), grad=False)
    options = {"return_weights": True, "return_lse": True, "backend": backend}
    _, full, lse = additive_attention(*inputs, **options)
    context, dropped, lse_dropped = additive_attention(*inputs, dropout_p=0.75, **options)
    scaled = torch.where(dropped != 0, full.double() * 4, 0.0)
    assert_within_budget(dropped, scaled.float(), scaled)
    product = dropped.double() @ inputs[2].double()
    assert_within_budget(context, dropped @ inputs[2], product)
    assert_within_budget(lse_dropped, lse, lse.double())


def test_p_one_drops_everything(backend: str) -> None:
    inputs = make((2, 3, 9, 4, 2))
    context, weights = additive_attention(
        *inputs, dropout_p=1.0, return_weights=True, backend=backend
    )
    assert (context == 0).all() and (weights == 0).all()
    for gradient in torch.autograd.grad(context.sum() + weights.sum(), inputs):
        assert (gradient == 0).all()


def test_torch_generator_is_the_seed(backend: str) -> None:
    inputs = make((2, 3, 9, 4, 2))

    def draw() -> torch.Tensor:
        return additive_attention(*inputs, dropout_p=0.5, return_weights=True, backend=backend)[1]

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    again = draw()
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_without_dropout_the_generator_is_left_alone(backend: str) -> None:
    state = torch.get_rng_state()
    additive_attention(*make((2, 3, 9, 4, 2), grad=False), backend=backend)
    torch.manual_seed(0)
    make((2, 3, 9, 4, 2))
    expected = torch.get_rng_state()
    assert not torch.equal(state, expected)
    torch.manual_seed(0)
    inputs = make((2, 3, 9, 4, 2))
    additive_attention(*inputs, backend=backend)
    assert torch.equal(torch.get_rng_state(), expected)


def test_the_backward_sees_the_same_mask(backend: str) -> None:
    """The gradient of value is weights^T: a pair dropped in the forward has no gradient."""
    query, key, value, weight = make((2, 3, 9, 4, 9))
    context, weights = additive_attention(
        query, key, value, weight, dropout_p=0.5, return_weights=True, backend=backend
    )
    for row in range(3):
        (gradient,) = torch.autograd.grad(context[:, row].sum(), value, retain_graph=True)
        assert torch.equal(gradient[..., 0] != 0, weights[:, row] != 0)
