"""Scalars of NumPy are numbers wherever a number is taken; bools and arrays are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.inputs import F32, F64, make
from torch import Tensor, nn

from attnkernels import (
    additive_attention,
    additive_attention_varlen,
    additive_scores,
    prepare_keys,
)
from attnkernels.models import (
    ConvEncoder,
    PointerNetwork,
    RecurrentAttentionModel,
    RNNsearch,
    Seq2Seq,
    ShowAttendTell,
)
from attnkernels.nn import (
    AdditiveAttention,
    AttentionPooling,
    CoverageAttention,
    HardAttention,
    LocationSensitiveAttention,
    MonotonicAttention,
    PointerHead,
    score_function_loss,
)

FLOATS = [np.float32, np.float16, np.longdouble]
INTS = [np.int64, np.uint8]
NO_NUMBERS = [np.bool_(True), True, np.array(1.0), np.array([1]), torch.tensor(1.0), "1", None]


def given() -> list[Tensor]:
    torch.manual_seed(1)
    return list(make((2, 3, 5, 4, 6)))


def varlen(*tensors: Tensor, **options: Any) -> Tensor:
    query, key, value, weight = tensors
    ends = torch.tensor([0, 1, 3]), torch.tensor([0, 2, 5])
    return additive_attention_varlen(query[0], key[0], value[0], weight, *ends, **options)


def prepared(*tensors: Tensor, dropout_p: Any = 0.0, **options: Any) -> Tensor:
    query, *memory = tensors
    return prepare_keys(*memory, **options).attend(query, dropout_p=dropout_p)


def scores(*tensors: Tensor, dropout_p: Any = 0.0, **options: Any) -> Tensor:
    query, key, _, weight = tensors
    return additive_scores(query, key, weight, **options)


CALLS: list[Callable[..., Tensor]] = [additive_attention, varlen, prepared, scores]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", [*FLOATS, *INTS])
def test_functions_take_them(backend: str, call: Callable[..., Tensor], number: type) -> None:
    """The result and the gradient are those of Python's number."""
    value = 1 if number in INTS else 0.5
    tensors = given()
    options = {"activation": "leaky_relu", "backend": backend}
    results = []
    for scalar in (number(value), value):
        torch.manual_seed(2)
        some = {"scale": scalar, "negative_slope": scalar, "dropout_p": scalar}
        found = call(*tensors, **some, **options)
        results.append((found, *torch.autograd.grad(found.sum(), tensors[:2])))
    for x, y in zip(*results, strict=True):
        assert x.dtype is F32 and torch.equal(x, y)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("name", ["scale", "negative_slope"])
def test_others_are_refused(call: Callable[..., Tensor], value: Any, name: str) -> None:
    of = type(value)
    named = f"numpy.{of.__name__}" if of.__module__ == "numpy" else of.__name__
    with pytest.raises(TypeError, match=f"^{name} must be a number, got {named}$"):
        call(*given(), **{name: value})


SIZES = (6, 5, 8)
MODULES: dict[str, Callable[..., nn.Module]] = {
    "additive": lambda size, x: AdditiveAttention(
        *map(size, SIZES), num_heads=size(2), dropout=x(0.5), negative_slope=x(0.5), scale=x(0.5)
    ),
    "pooling": lambda size, x: AttentionPooling(
        size(6), size(8), num_heads=size(2), dropout=x(0.5)
    ),
    "coverage": lambda size, x: CoverageAttention(*map(size, SIZES), scale=x(0.5)),
    "location": lambda size, x: LocationSensitiveAttention(
        *map(size, SIZES), channels=size(2), kernel_size=size(3), scale=x(0.5)
    ),
    "moving": lambda size, x: MonotonicAttention(*map(size, SIZES), score_bias=x(-1), noise=x(0.5)),
    "hard": lambda size, x: HardAttention(*map(size, SIZES), scale=x(0.5)),
    "pointer": lambda size, x: PointerHead(*map(size, SIZES), scale=x(0.5)),
    "rnnsearch": lambda size, x: RNNsearch(
        size(9),
        size(9),
        embedding_dim=size(4),
        encoder_dim=size(3),
        hidden_dim=size(4),
        align_dim=size(4),
        maxout_dim=size(4),
        dropout=x(0.5),
        begin=size(1),
        end=size(2),
    ),
    "seq2seq": lambda size, x: Seq2Seq(
        size(9), size(9), embedding_dim=size(4), hidden_dim=size(4), maxout_dim=size(4)
    ),
    "pointers": lambda size, x: PointerNetwork(size(2), hidden_dim=size(4)),
    "glimpses": lambda size, x: RecurrentAttentionModel(
        size(3), size=size(4), glimpses=size(2), features=size(4), hidden=size(4), std=x(0.5)
    ),
    "captions": lambda size, x: ShowAttendTell(
        ConvEncoder(size(1), size(4)),
        size(7),
        begin=size(1),
        end=size(2),
        annotation_dim=size(4),
        embed_dim=size(4),
        hidden_dim=size(4),
        attention_dim=size(4),
        doubly_stochastic=x(0.5),
        expected_chance=x(0.5),
    ),
}


@pytest.mark.parametrize("made", MODULES.values(), ids=MODULES)
def test_modules_keep_them_as_pythons(made: Callable[..., nn.Module]) -> None:
    """So that reprs, pickles and messages are those of Python's numbers."""
    of_numpy, of_python = made(np.int64, np.float32), made(int, float)
    assert repr(of_numpy) == repr(of_python)
    for x, y in zip(of_numpy.modules(), of_python.modules(), strict=True):
        for name, wanted in vars(y).items():
            if isinstance(wanted, (int, float)):
                found = vars(x)[name]
                assert type(found) is type(wanted) and found == wanted, name


@pytest.mark.parametrize("value", [np.bool_(True), True, 8.0, np.float32(8), np.array(8), None])
def test_sizes_are_ints(value: Any) -> None:
    with pytest.raises(ValueError, match="^key_dim must be an int of at least 1, got "):
        AdditiveAttention(6, value, 8)


@pytest.mark.parametrize("name", ["begin", "end"])
@pytest.mark.parametrize("value", [None, 1.5, True, np.float32(1)])
def test_tokens_of_models_are_ints(name: str, value: Any) -> None:
    sizes = {"embedding_dim": 4, "hidden_dim": 4, "maxout_dim": 4}
    with pytest.raises(TypeError, match=f"^{name} must be an int, got "):
        Seq2Seq(9, 9, **sizes, **{name: value})
    with pytest.raises(TypeError, match=f"^{name} must be an int, got "):
        ShowAttendTell(ConvEncoder(), 9, **({"begin": 1, "end": 2} | {name: value}))


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"encoder": None}, TypeError, "encoder must be a module, got NoneType"),
        ({"vocab_size": None}, ValueError, "vocab_size must be an int of at least 1, got None"),
        ({"embed_dim": 2.5}, ValueError, "embed_dim must be an int of at least 1, got 2.5"),
        ({"doubly_stochastic": "x"}, TypeError, "doubly_stochastic must be a number, got str"),
        ({"expected_chance": 2}, ValueError, r"expected_chance must lie in \[0, 1\], got 2"),
    ],
)
def test_what_a_model_is_made_of(
    options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    usual = {"encoder": ConvEncoder(), "vocab_size": 9, "begin": 1, "end": 2}
    with pytest.raises(error, match=f"^{sentence}"):
        ShowAttendTell(**(usual | options))


def test_rewards_are_tensors_or_numbers() -> None:
    log_prob = torch.zeros(3, dtype=F64)
    assert torch.equal(score_function_loss(log_prob, np.float32(1.0)), -log_prob)
    for options in ({"reward": None}, {"reward": 1.0, "baseline": "x"}):
        with pytest.raises(TypeError, match="^(reward|baseline) must be a number, got "):
            score_function_loss(log_prob, **options)
