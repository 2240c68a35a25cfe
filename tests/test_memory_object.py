"""AdditiveMemory: what a decoder keeps between steps attends as a plain call does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inputs import BF16, F32, F64, Shape, make, normal
from torch import Tensor

from attnkernels import AdditiveMemory, additive_attention, prepare_keys

SHAPE: Shape = (3, 2, 140, 19, 7)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"key_lengths": torch.tensor([0, 129, 140])},
    "relu": {"activation": "relu"},
    "leaky": {"activation": "leaky_relu", "negative_slope": 0.4, "scale": 0.7},
    "sigmoid": {"activation": "sigmoid", "scale": -2.0},
}


def attend_both(
    inputs: tuple[Tensor, ...], prepared: dict[str, Any], asked: dict[str, Any], backend: str
) -> tuple[Any, Any]:
    query, key, value, weight = inputs
    memory = prepare_keys(key, value, weight, backend=backend, **prepared)
    torch.manual_seed(4)
    found = memory.attend(query, **asked)
    torch.manual_seed(4)
    wanted = additive_attention(query, key, value, weight, backend=backend, **prepared, **asked)
    return found, wanted


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("n", [1, 2, 40])
def test_attends_as_a_plain_call(backend: str, options: dict[str, Any], n: int) -> None:
    inputs = make((3, n, 140, 19, 7))
    found, wanted = attend_both(inputs, options, {}, backend)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(wanted.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [F32, BF16, F64])
def test_without_autograd(backend: str, dtype: torch.dtype) -> None:
    inputs = make(SHAPE, dtype, grad=False)
    torch.testing.assert_close(*attend_both(inputs, {}, {}, backend))
    with torch.no_grad():
        torch.testing.assert_close(*attend_both(make(SHAPE, dtype), {}, {}, backend))


def test_weights_lse_mask_and_dropout(backend: str) -> None:
    asked = {
        "attn_mask": torch.rand(2, 140) < 0.7,
        "dropout_p": 0.3,
        "return_weights": True,
        "return_lse": True,
    }
    torch.testing.assert_close(*attend_both(make(SHAPE), OPTIONS["lengths"], asked, backend))


def test_gradients_reach_keys_over_several_steps(backend: str) -> None:
    query, key, value, weight = make((2, 4, 30, 9, 5))
    memory = prepare_keys(key, value, weight, backend=backend)
    steps = torch.cat([memory.attend(query[:, i : i + 1]) for i in range(4)], 1)
    whole = additive_attention(query, key, value, weight, backend=backend)
    torch.testing.assert_close(steps, whole)
    inputs = (query, key, value, weight)
    for a, b in zip(
        torch.autograd.grad(steps.square().sum(), inputs),
        torch.autograd.grad(whole.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_huge_keys_survive_preparation(backend: str) -> None:
    """exp(2k) overflows past 43 while q + k may be small."""
    query, key, value, weight = make(SHAPE, grad=False)
    found, wanted = attend_both((query - 60, key + 60, value, weight), {}, {}, backend)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 140, 77])], ids=["full", "lengths"])
def test_index_select_reorders_beams(backend: str, lengths: Tensor | None) -> None:
    query, key, value, weight = make(SHAPE)
    memory = prepare_keys(key, value, weight, key_lengths=lengths, backend=backend)
    for index in (torch.tensor([2, 0, 0, 1]), torch.tensor([1])):
        chosen = memory.index_select(0, index)
        assert isinstance(chosen, AdditiveMemory)
        found = chosen.attend(query[index])
        wanted = additive_attention(
            query[index],
            key[index],
            value[index],
            weight,
            key_lengths=None if lengths is None else lengths[index],
            backend=backend,
        )
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(
            torch.autograd.grad(found.square().sum(), key, retain_graph=True),
            torch.autograd.grad(wanted.square().sum(), key),
        )
    # the one it came from is left as it was
    torch.testing.assert_close(
        memory.attend(query),
        additive_attention(query, key, value, weight, key_lengths=lengths, backend=backend),
    )


def test_index_select_of_a_beam_dimension(backend: str) -> None:
    """(batch, beam) leading dimensions, chosen along the second, also from the end."""
    query, key, value, weight = (
        normal(2, 3, 1, 9),
        normal(2, 3, 30, 9),
        normal(2, 3, 30, 5),
        normal(9),
    )
    memory = prepare_keys(key, value, weight, backend=backend)
    index = torch.tensor([2, 2, 0])
    wanted = additive_attention(query, key[:, index], value[:, index], weight, backend=backend)
    torch.testing.assert_close(memory.index_select(1, index).attend(query), wanted)


def test_one_memory_for_a_batch_of_queries(backend: str) -> None:
    query, key, value, weight = normal(4, 2, 9), normal(30, 9), normal(30, 5), normal(9)
    found = prepare_keys(key, value, weight, backend=backend).attend(query)
    torch.testing.assert_close(
        found, additive_attention(query, key, value, weight, backend=backend)
    )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(
    backend: str, copied: Callable[[AdditiveMemory], AdditiveMemory]
) -> None:
    query, key, value, weight = make(SHAPE, grad=False)
    lengths = torch.tensor([3, 140, 77])
    memory = prepare_keys(
        key, value, weight, key_lengths=lengths, activation="sigmoid", backend=backend
    )
    assert torch.equal(copied(memory).attend(query), memory.attend(query))


def test_under_autocast(backend: str) -> None:
    """Prepared inside: in the narrow dtype. Prepared outside: as a plain call inside casts it."""
    query, key, value, weight = make(SHAPE)
    outside = prepare_keys(key, value, weight, backend=backend)
    with torch.autocast("cpu", BF16):
        wanted = additive_attention(query, key, value, weight, backend=backend)
        inside = prepare_keys(key, value, weight, backend=backend)
        assert inside.key.dtype == wanted.dtype == BF16
        torch.testing.assert_close(inside.attend(query), wanted)
        torch.testing.assert_close(outside.attend(query), wanted)


def test_no_hidden_state(backend: str) -> None:
    query, key, value, weight = make(SHAPE, grad=False)
    memory = prepare_keys(key, value, weight, backend=backend)
    first = memory.attend(query)
    memory.attend(normal(3, 1, 19))
    assert torch.equal(memory.attend(query), first)


@pytest.mark.parametrize("n, m", [(0, 5), (2, 0)])
def test_empty(backend: str, n: int, m: int) -> None:
    found, wanted = attend_both(make((2, n, m, 4, 3)), {}, {}, backend)
    assert torch.equal(found, wanted)
