"""The option precision on its way: checked, kept by memories, and handed to the backend."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, cumulative, make, normal
from helpers.watched import watch_options
from torch import Tensor

from attnkernels import (
    additive_attention,
    additive_attention_sparse,
    additive_attention_varlen,
    additive_scores,
    prepare_edges,
    prepare_keys,
)
from attnkernels.functional.memory import restore_memory
from attnkernels.ops.signature import Options

SHAPE = (2, 3, 4, 5, 6)
MADE = make(SHAPE, grad=False)
LENGTHS = torch.tensor([2, 4])


def attend(**options: Any) -> Any:
    return additive_attention(*MADE, **options)


def scores(**options: Any) -> Any:
    query, key, _, weight = MADE
    return additive_scores(query, key, weight, **options)


def varlen(**options: Any) -> Any:
    query, key, value, weight = MADE
    boundaries = cumulative([1, 2]), cumulative([2, 2])
    return additive_attention_varlen(query[0], key[0], value[0], weight, *boundaries, **options)


def step(**options: Any) -> Any:
    return prepare_keys(*MADE[1:], **options).attend(MADE[0])


CALLS: list[Callable[..., Any]] = [attend, scores, varlen, step]
calls = pytest.mark.parametrize("call", CALLS)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    return watch_options(monkeypatch)


@calls
def test_the_backend_gets_it(call: Callable[..., Any], seen: list[Options]) -> None:
    call(backend="reference")
    call(backend="reference", precision="exact")
    call(backend="reference", precision="fast")
    call(backend="reference", precision="fast", activation="relu", scale=2)
    assert [options.precision for options in seen] == ["exact", "exact", "fast", "fast"]
    assert seen[-1].activation == "relu" and seen[-1].scale == 2


@calls
@pytest.mark.parametrize("wrong", ["half", "Fast", "", None, True, 1, ["fast"]], ids=repr)
def test_another_name_is_refused(call: Callable[..., Any], wrong: Any) -> None:
    with pytest.raises(
        ValueError, match="^precision must be one of 'exact', 'fast', got "
    ) as error:
        call(precision=wrong)
    assert str(error.value).endswith(repr(wrong))


def test_attention_over_edges_has_none() -> None:
    edges = prepare_edges(torch.tensor([[0, 1, 3], [2, 0, 2]]), 3, 4)
    arguments: Any = {"precision": "fast"}
    with pytest.raises(TypeError, match="precision"):
        additive_attention_sparse(*MADE, edges, **arguments)


def test_backends_without_anything_faster_stay_exact() -> None:
    """Relu has no approximation, and the kernels of the CPU have none of any activation."""
    for given in ({"activation": "relu", "backend": "reference"}, {"backend": "native"}):
        assert torch.equal(attend(**given), attend(**given, precision="fast"))


def pickled(memory: Any) -> Any:
    return pickle.loads(pickle.dumps(memory))


def saved(memory: Any) -> Any:
    stored = io.BytesIO()
    torch.save(memory, stored)
    stored.seek(0)
    with torch.serialization.safe_globals([restore_memory]):
        return torch.load(stored, weights_only=True)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "none": lambda memory: memory,
    "pickle": pickled,
    "save": saved,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "index_select": lambda memory: memory.index_select(0, torch.tensor([1, 0])),
    "autocast": lambda memory: memory.autocast(BF16),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_memory_keeps_it(change: Callable[[Any], Any], precision: Any, seen: list[Any]) -> None:
    options = {"key_lengths": LENGTHS, "activation": "sigmoid", "scale": 0.5}
    memory = prepare_keys(*MADE[1:], precision=precision, backend="reference", **options)
    changed = change(memory)
    assert changed.precision == changed.options.precision == precision
    changed.attend(MADE[0].to(changed.key.dtype), start=0, return_weights=True)
    assert seen[-1].precision == precision and seen[-1].activation == "sigmoid"


def test_a_memory_saved_before_there_was_one_is_exact() -> None:
    memory = prepare_keys(*MADE[1:], activation="sigmoid")
    restore, kept = memory.__reduce__()
    old = restore(*kept[:-1])
    assert kept[-1] == old.precision == "exact"
    assert torch.equal(old.attend(MADE[0]), memory.attend(MADE[0]))


def test_a_memory_shows_it_unless_it_is_the_default() -> None:
    assert "precision" not in repr(prepare_keys(*MADE[1:]))
    assert ", precision='fast', " in repr(prepare_keys(*MADE[1:], precision="fast"))


def test_under_autocast(seen: list[Options]) -> None:
    memory = prepare_keys(*MADE[1:], precision="fast", backend="reference")
    with torch.autocast("cpu", BF16):
        memory.attend(MADE[0])
        attend(precision="fast", backend="reference")
    assert [options.precision for options in seen] == ["fast", "fast"]


def test_gradients_pass_through() -> None:
    """All results have gradients, those of "reference" by the formula."""
    inputs = tuple(normal(*x.shape) for x in MADE)

    def call(*inputs: Tensor) -> Any:
        return additive_attention(*inputs, precision="fast", backend="reference")

    grads = torch.autograd.grad(call(*inputs).square().sum(), inputs)
    assert all(grad.isfinite().all() and grad.any() for grad in grads)
