"""The option precision of modules and models: checked, shown, copied and handed on."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.inputs import normal
from helpers.watched import watch_options
from torch import nn

from attnkernels.models import ConvEncoder, PointerNetwork, RNNsearch, ShowAttendTell
from attnkernels.nn import (
    AdditiveAttention,
    AttentionPooling,
    AttentionRNN,
    CoverageAttention,
    GraphAttention,
    HardAttention,
    LocationSensitiveAttention,
    MonotonicAttention,
    PointerHead,
)
from attnkernels.ops.signature import Options

SIZES = 6, 5, 8  # query_dim, key_dim, hidden_dim
QUERY, KEY = normal(2, 3, 6, grad=False), normal(2, 4, 5, grad=False)
KINDS: tuple[Any, ...] = (
    AdditiveAttention,
    CoverageAttention,
    HardAttention,
    LocationSensitiveAttention,
    MonotonicAttention,
    PointerHead,
)
MODULES: dict[str, Callable[..., Any]] = {kind.__name__: partial(kind, *SIZES) for kind in KINDS}
MODULES["AttentionPooling"] = partial(AttentionPooling, 5, 8)
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def use(module: nn.Module) -> Any:
    return module(KEY) if isinstance(module, AttentionPooling) else module(QUERY, KEY)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    return watch_options(monkeypatch)


def precisions(seen: list[Options]) -> list[str]:
    return [options.precision for options in seen]


@modules
def test_modules_hand_it_on(make: Callable[..., Any], seen: list[Options]) -> None:
    for options in ({}, {"precision": "exact"}, {"precision": "fast"}):
        seen.clear()
        module = make(backend="reference", **options)
        use(module)
        assert set(precisions(seen)) == {options.get("precision", "exact")} == {module.precision}
    module.precision = "exact"
    seen.clear()
    use(module)
    assert set(precisions(seen)) == {"exact"}


@modules
def test_modules_refuse_another_name(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="^precision must be one of 'exact', 'fast', got 'half'$"):
        make(precision="half")


@modules
def test_modules_show_it_unless_it_is_the_default(make: Callable[..., Any]) -> None:
    assert "precision" not in repr(make())
    assert "precision='fast'" in repr(make(precision="fast"))


@modules
def test_copies_keep_it_and_old_pickles_are_exact(make: Callable[..., Any]) -> None:
    module = make(precision="fast")
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied.precision == "fast"
    assert module.state_dict().keys() == make().state_dict().keys()
    before = vars(module).pop("precision")  # as in a module saved before there was one
    old = pickle.loads(pickle.dumps(module))
    assert before == "fast" and old.precision == "exact" and "precision" not in repr(old)
    use(old)


def test_graphs_have_none() -> None:
    arguments: Any = {"precision": "fast"}
    with pytest.raises(TypeError, match="precision"):
        GraphAttention(4, 4, **arguments)


def test_a_prepared_memory_keeps_it(seen: list[Options]) -> None:
    attention = AdditiveAttention(6, 6, 8, num_heads=2, precision="fast", backend="reference")
    prepared = attention.prepare(normal(2, 4, 6, grad=False), torch.tensor([2, 4]))
    attention.precision = "exact"  # of what is prepared from now on
    attention.step(QUERY, prepared.index_select(torch.tensor([1, 0])))
    assert prepared.memory.precision == "fast" and precisions(seen) == ["fast"]


@pytest.mark.parametrize("make", [AdditiveAttention, LocationSensitiveAttention])
def test_a_decoder_uses_that_of_its_attention(make: Any, seen: list[Options]) -> None:
    """Check the steps, and the gradients of the keys that are computed after them."""
    attention = make(*SIZES, precision="fast", backend="reference")
    rnn = AttentionRNN(nn.GRUCell(3 + 5, 6), attention)
    outputs, *_ = rnn(normal(2, 4, 3), KEY)
    assert set(precisions(seen)) == {"fast"}
    seen.clear()
    outputs.sum().backward()
    assert set(precisions(seen)) <= {"fast"} and (seen or make is not AdditiveAttention)


def test_steps_that_are_computed_again_keep_it() -> None:
    """The plain formula of a stepwise attention, which computes the keys again, sees it too."""
    attention = CoverageAttention(*SIZES, precision="fast")
    state = attention.for_steps(attention.prepare(KEY), 3)
    assert state.steps._scoring.precision == "fast"  # type: ignore[attr-defined]


MODELS: dict[str, Callable[..., Any]] = {
    "RNNsearch": lambda **options: RNNsearch(
        7, 9, embedding_dim=4, encoder_dim=4, hidden_dim=4, align_dim=4, maxout_dim=4, **options
    ),
    "PointerNetwork": lambda **options: PointerNetwork(2, hidden_dim=4, **options),
    "ShowAttendTell": lambda **options: ShowAttendTell(
        ConvEncoder(1, 4), 7, begin=1, end=2, annotation_dim=4, attention="hard", **options
    ),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_models_hand_it_to_their_attentions(make: Callable[..., Any]) -> None:
    kinds = AdditiveAttention, HardAttention, PointerHead
    for options in ({}, {"precision": "fast"}):
        found = [each for each in make(**options).modules() if isinstance(each, kinds)]
        assert found and {x.precision for x in found} == {options.get("precision", "exact")}
    with pytest.raises(ValueError, match="^precision must be"):
        make(precision="half")
