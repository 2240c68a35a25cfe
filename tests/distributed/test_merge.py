"""merge_attention: attention to parts of the keys becomes that to all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F32, F64, make
from torch import Tensor

from attnkernels import additive_attention
from attnkernels.distributed import merge_attention
from attnkernels.testing import assert_within_budget, check_attention

SHAPE = (2, 6, 20, 5, 4)
INF = torch.inf


def in_parts(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, **options: Any) -> Any:
    parts = [
        additive_attention(query, k, u, weight, return_lse=True)
        for k, u in zip(key.split([7, 1, 12], -2), value.split([7, 1, 12], -2), strict=True)
    ]
    return merge_attention(*zip(*parts, strict=True))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_parts_of_the_keys(dtype: torch.dtype) -> None:
    check_attention(*make(SHAPE, dtype), backend=in_parts, return_lse=True)


def test_bfloat16() -> None:
    """Each part is rounded before it is merged."""
    query, key, value, weight = make(SHAPE, BF16, grad=False)
    context, lse = in_parts(query, key, value, weight)
    exact = additive_attention(*(x.double() for x in (query, key, value, weight)))
    reference = additive_attention(query, key, value, weight, backend="reference")
    assert lse.dtype == F32
    rounding = value.double().abs().max().item() * torch.finfo(BF16).eps / torch.finfo(F32).eps
    assert_within_budget(context, reference, exact, magnitude=rounding)


def test_second_derivatives() -> None:
    contexts = [torch.randn(3, 2, dtype=F64, requires_grad=True) for _ in range(3)]
    lses = [torch.randn(3, dtype=F64, requires_grad=True) for _ in range(3)]

    def merged(*given: Tensor) -> Any:
        return merge_attention(given[:3], given[3:])

    assert torch.autograd.gradcheck(merged, (*contexts, *lses))
    assert torch.autograd.gradgradcheck(merged, (*contexts, *lses))


def test_rows_without_keys() -> None:
    contexts = [torch.randn(2, 3, 4), torch.zeros(2, 3, 4)]
    lses = [torch.randn(2, 3), torch.full((2, 3), -INF)]
    contexts[0][0, 1], lses[0][0, 1] = 0, -INF
    leaves = [x.requires_grad_() for x in (*contexts, *lses)]
    context, lse = merge_attention(leaves[:2], leaves[2:])
    assert torch.equal(context, contexts[0]) and torch.equal(lse, lses[0])
    assert (context[0, 1] == 0).all() and lse[0, 1] == -INF
    finite = torch.where(lse == -INF, 0.0, lse)
    gradients = torch.autograd.grad([context.sum() + finite.sum()], leaves)
    assert all(x.isfinite().all() for x in gradients)
    assert all((x[0, 1] == 0).all() for x in gradients)


def test_scores_far_apart() -> None:
    context, lse = merge_attention(
        [torch.ones(1, 1), torch.zeros(1, 1)], [torch.tensor([1e4]), torch.tensor([-1e4])]
    )
    assert context == 1 and lse == 1e4


def test_nan_stays() -> None:
    contexts, lses = torch.randn(2, 3, 4).unbind(), torch.randn(2, 3).unbind()
    lses[1][2] = contexts[1][2, 0] = torch.nan
    context, lse = merge_attention(contexts, lses)
    assert context[:2].isfinite().all() and lse[:2].isfinite().all()
    assert context[2].isnan().all() and lse[2].isnan()


@pytest.mark.parametrize(
    "contexts, lses, message",
    [
        ([], [], "one entry per part"),
        ([torch.zeros(3, 2)], [], "got 1 and 0"),
        ([torch.zeros(3, 2)], [torch.zeros(2)], r"lses\[0\] must have shape \(..., n\) = \(3,\)"),
        ([torch.zeros(3, 2), torch.zeros(3, 1)], [torch.zeros(3)] * 2, r"contexts\[1\]"),
        ([torch.zeros(3)], [torch.zeros(())], r"contexts\[0\] must be \(..., n, dv\)"),
        ([torch.zeros(3, 2)], [torch.zeros(3, dtype=F64)], r"lses\[0\] must be float32"),
        ([torch.zeros(3, 2).long()], [torch.zeros(3)], r"contexts\[0\] must be float32"),
    ],
)
def test_errors(contexts: list[Tensor], lses: list[Tensor], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        merge_attention(contexts, lses)
