"""The error budget itself: right results pass, slightly wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, F64, Altered, cumulative, make, normal
from torch import Tensor

from attnkernels import additive_attention, additive_attention_varlen, additive_scores
from attnkernels.testing import (
    assert_within_budget,
    check_attention,
    check_scores,
    check_varlen,
)

SHAPE = (2, 5, 40, 19, 7)
EVERYTHING = {"return_weights": True, "return_lse": True}


def spoiled(place: int, bend: Callable[[Tensor], Tensor], *, input: bool) -> Callable[..., Any]:
    """Return the reference with a wrong output, or a wrong gradient of one input."""

    def call(*inputs: Tensor, **options: Any) -> Any:
        if input:
            inputs = tuple(
                Altered.apply(x, bend) if i == place else x for i, x in enumerate(inputs)
            )
        outputs = additive_attention(*inputs, backend="reference", **options)
        return (
            outputs if input else tuple(bend(x) if i == place else x for i, x in enumerate(outputs))
        )

    return call


def nan_at_one(x: Tensor) -> Tensor:
    return torch.where(torch.arange(x.numel()).view(x.shape) == 3, float("nan"), x)


def off_at_one(x: Tensor) -> Tensor:
    """The error is a thousandth of the largest entry."""
    at = torch.arange(x.numel()).view(x.shape) == 3
    return x + at * 1e-3 * x.detach().abs().max()


BENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "off": off_at_one,
    "NaN": nan_at_one,
    "scaled": lambda x: x * 1.001,
    "zero": torch.zeros_like,
    "flipped": lambda x: x.flip(-1),
}


@pytest.mark.parametrize("bend", BENDS.values(), ids=BENDS)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["context", "weights", "lse"])
def test_a_wrong_output_is_found(place: int, bend: Callable[[Tensor], Tensor]) -> None:
    call = spoiled(place, bend, input=False)
    with pytest.raises(AssertionError, match=("context", "weights", "lse")[place]):
        check_attention(*make(SHAPE), **EVERYTHING, backend=call)


@pytest.mark.parametrize("bend", BENDS.values(), ids=BENDS)
@pytest.mark.parametrize("place", range(4), ids=["query", "key", "value", "weight"])
def test_a_wrong_gradient_is_found(place: int, bend: Callable[[Tensor], Tensor]) -> None:
    call = spoiled(place, bend, input=True)
    with pytest.raises(AssertionError, match="gradient of"):
        check_attention(*make(SHAPE), **EVERYTHING, backend=call)


def test_the_reference_is_within() -> None:
    """A function passes just as a backend given by name does."""
    call = spoiled(9, torch.clone, input=False)
    check_attention(*make(SHAPE), **EVERYTHING, dropout_p=0.3, backend=call)


def test_another_formula_is_found() -> None:
    inputs = make(SHAPE)
    with pytest.raises(AssertionError):
        check_attention(
            *inputs,
            backend=lambda *x: additive_attention(*x, activation="sigmoid", backend="reference"),
        )
    with pytest.raises(AssertionError):
        check_scores(
            *(inputs[i] for i in (0, 1, 3)),
            backend=lambda *x: additive_scores(*x, scale=1.001, backend="reference"),
        )
    packed = normal(4, 3), normal(5, 3), normal(5, 2), normal(3)
    with pytest.raises(AssertionError):
        check_varlen(
            *packed,
            cumulative([2, 2]),
            cumulative([2, 3]),
            backend=lambda *x: additive_attention_varlen(*x, is_causal=True, backend="reference"),
        )


def test_another_dropout_mask_is_found() -> None:
    def call(*inputs: Tensor, **options: Any) -> Tensor:
        torch.rand(())
        return additive_attention(*inputs, backend="reference", **options)

    with pytest.raises(AssertionError):
        check_attention(*make(SHAPE), dropout_p=0.3, backend=call)


def test_shape_and_dtype_must_agree() -> None:
    exact = torch.ones(3, dtype=F64)
    assert_within_budget(torch.ones(3), torch.ones(3), exact)
    with pytest.raises(AssertionError):
        assert_within_budget(torch.ones(3, 1), torch.ones(3), exact)
    with pytest.raises(AssertionError):
        assert_within_budget(torch.ones(3, dtype=BF16), torch.ones(3), exact)


@pytest.mark.parametrize("dtype, wrong", [(F32, 2e-6), (BF16, 0.05), (F64, 2e-15)])
def test_the_band_is_a_few_roundings(dtype: torch.dtype, wrong: float) -> None:
    """The reference is exact here, so it allows for no error."""
    exact = torch.ones(5, dtype=F64)
    one = torch.ones(5, dtype=dtype)
    assert_within_budget(one * (1 + torch.finfo(dtype).eps), one, exact)
    with pytest.raises(AssertionError):
        assert_within_budget(one * (1 + wrong), one, exact)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_must_be_in_its_place(odd: float) -> None:
    exact = torch.tensor([1.0, odd, 2.0], dtype=F64)
    assert_within_budget(exact.float(), exact.float(), exact)
    for other in (0.0, -odd, float("inf") if odd != odd else float("nan")):
        if other == other or odd == odd:
            found = torch.tensor([1.0, other, 2.0])
            with pytest.raises(AssertionError):
                assert_within_budget(found, exact.float(), exact)
    with pytest.raises(AssertionError):
        assert_within_budget(torch.tensor([odd, odd, 2.0]), exact.float(), exact)
