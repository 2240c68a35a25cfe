"""Scores of keys that see earlier weights, and their gradients, by the compiled kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.inputs import F32, F64, normal
from torch import Tensor

from attnkernels.backends import native
from attnkernels.testing import assert_within_budget

pytestmark = pytest.mark.skipif(
    not native.aligns(torch.zeros(1)), reason="the library has no kernels for CPUs"
)

# (B, m, d, channels, taps): ones, odd sizes, and just past every tile
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 5, 17, 2, 3),
    (3, 33, 64, 1, 31),
    (2, 36, 100, 2, 5),
    (1, 70, 161, 1, 9),
    (5, 7, 16, 3, 1),
    (2, 35, 150, 10, 1),
    (1, 66, 33, 37, 1),
    (2, 3, 40, 1, 7),
]
NAMES = ("query", "key", "weight", "seen", "filter")


def make(size: tuple[int, ...], scale: float = 1.0) -> list[Tensor]:
    batch, m, d, channels, taps = size
    return [
        normal(batch, d, dtype=F64, size=scale, grad=False),
        normal(batch, m, d, dtype=F64, size=scale, grad=False),
        normal(d, dtype=F64, grad=False) / d**0.5,
        normal(batch, channels, m + taps - 1, dtype=F64, grad=False),
        normal(channels, taps, d, dtype=F64, size=scale, grad=False) / taps**0.5,
    ]


def formula(
    query: Tensor, key: Tensor, weight: Tensor, seen: Tensor, filter: Tensor, scale: float
) -> Tensor:
    added = F.conv1d(seen, filter.permute(2, 0, 1)).mT
    return scale * (torch.tanh(query.unsqueeze(1) + key + added) @ weight)


def by_formula(inputs: list[Tensor], grad: Tensor, scale: float) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    scores = formula(*leaves, scale)
    return [scores.detach(), *torch.autograd.grad(scores, leaves, grad)]


def by_kernel(inputs: list[Tensor], grad: Tensor, scale: float, start: float = 0.0) -> list[Tensor]:
    scores = native.aligned_scores(*inputs, scale)
    query, key, weight, seen, filter = inputs
    key, weight, filter = (torch.full_like(x, start) for x in (key, weight, filter))
    found = native.aligned_scores_backward(grad, *inputs, scale, key, weight, filter)
    return [scores, found[0], key, weight, found[1], filter]


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_scores_and_gradients(size: tuple[int, ...], dtype: torch.dtype) -> None:
    exact = make(size)
    grad, scale = normal(size[0], size[1], dtype=F64, grad=False), 1.5
    inputs = [x.to(dtype) for x in exact]
    found = by_kernel(inputs, grad.to(dtype), scale)
    plain = by_formula(inputs, grad.to(dtype), scale)
    wanted = by_formula([x.double() for x in inputs], grad.to(dtype).double(), scale)
    for name, x, y, z in zip(("scores", *NAMES), found, plain, wanted, strict=True):
        terms = 4 * max(1.0, z.abs().max().item())
        assert_within_budget(x, y, z, magnitude=terms, name=name)


@pytest.mark.parametrize("size", [3.0, 60.0, 1e4])
def test_sums_of_any_size(size: float) -> None:
    inputs = [x.to(F32) for x in make((2, 9, 20, 1, 3), size)]
    grad = torch.ones(2, 9)
    found, plain = by_kernel(inputs, grad, 1.0), by_formula(inputs, grad, 1.0)
    wanted = by_formula([x.double() for x in inputs], grad.double(), 1.0)
    for name, x, y, z in zip(("scores", *NAMES), found, plain, wanted, strict=True):
        terms = 20 * max(1.0, z.abs().max().item())
        assert_within_budget(x, y, z, magnitude=terms, name=name)


def test_slopes_of_saturated_units_do_not_cancel() -> None:
    query = torch.linspace(-12, 12, 48).unsqueeze(0)
    rest = torch.zeros(1, 1, 48), torch.ones(48), torch.zeros(1, 1, 1), torch.zeros(1, 1, 48)
    found = native.aligned_scores_backward(torch.ones(1, 1), query, *rest, 1.0, None, None, None)
    wanted = 1 / torch.cosh(query.double()).square()
    torch.testing.assert_close(found[0].double(), wanted, rtol=3e-6, atol=0)


def test_gradients_are_added() -> None:
    inputs, grad = [x.to(F32) for x in make(SIZES[3])], torch.randn(2, 36)
    once, added = by_kernel(inputs, grad, 1.0), by_kernel(inputs, grad, 1.0, 2.0)
    for at, start in enumerate((0.0, 0.0, 2.0, 2.0, 0.0, 2.0)):
        torch.testing.assert_close(added[at] - start, once[at])
    query, seen = native.aligned_scores_backward(grad, *inputs, 1.0, None, None, None)
    assert torch.equal(query, once[1]) and torch.equal(seen, once[4])


def test_nan_reaches_its_own_scores_and_no_others() -> None:
    inputs = [x.to(F32) for x in make(SIZES[2])]
    inputs[1][1, 30, 3] = float("nan")
    scores = native.aligned_scores(*inputs, 1.0)
    assert scores[1, 30].isnan() and scores.isnan().sum() == 1


def test_the_same_call_gives_the_same_bits() -> None:
    inputs, grad = [x.to(F32) for x in make(SIZES[2])], torch.randn(3, 33)
    for x, y in zip(by_kernel(inputs, grad, 1.0), by_kernel(inputs, grad, 1.0), strict=True):
        assert torch.equal(x, y)


REFUSED: dict[str, Any] = {
    "query": torch.zeros(2, 6),
    "key": torch.zeros(3, 4, 5),
    "weight": torch.zeros(5, dtype=F64),
    "seen": torch.zeros(2, 1, 4),
    "filter": torch.zeros(5, 3, 1).permute(2, 1, 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_would_lead_out_of_memory(name: str) -> None:
    given = [torch.zeros(2, 5), torch.zeros(2, 4, 5), torch.zeros(5)]
    given += [torch.zeros(2, 1, 6), torch.zeros(1, 3, 5)]
    native.aligned_scores(*given, 1.0)
    given[NAMES.index(name)] = REFUSED[name]
    with pytest.raises(RuntimeError, match="must be contiguous, of shape"):
        native.aligned_scores(*given, 1.0)
