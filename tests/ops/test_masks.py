"""Masks of every form, lengths, causality and their combinations; rows with nothing left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import INTERPRETED
from helpers.inputs import BF16, F16, F64, MANY, make, normal, transposed
from torch import Tensor

from attnkernels import additive_attention
from attnkernels.testing import check_attention

NEG_INF = float("-inf")

# every way to be broadcastable to (2, 5, 140)
FORMS = [
    (2, 5, MANY),
    (5, MANY),
    (1, 1, MANY),
    (2, 1, MANY),
    (2, 5, 1),
    (5, 1),
    (1, 5, 1),
    (MANY,),
    (1, 1),
    (1,),
    (),
]
SHAPE = (2, 5, MANY, 19, 7)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_bool_forms(backend: str, form: tuple[int, ...]) -> None:
    check_attention(*make(SHAPE), attn_mask=torch.rand(form) < 0.6, backend=backend)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_float_forms_and_their_gradients(backend: str, form: tuple[int, ...]) -> None:
    check_attention(*make(SHAPE), attn_mask=normal(*form), return_lse=True, backend=backend)


@pytest.mark.parametrize("form", [(2, 5, MANY), (2, 1, MANY), (5, 1), (MANY,)], ids=str)
def test_the_gradient_of_a_mask_alone(backend: str, form: tuple[int, ...]) -> None:
    check_attention(*make(SHAPE, grad=False), attn_mask=normal(*form), backend=backend)


@pytest.mark.parametrize("form", [(3, 1, 2, 5, MANY), (3, 1, 1, 1, MANY), (1, 1, 2, 5, 1)], ids=str)
def test_a_mask_with_leading_dimensions_of_its_own(backend: str, form: tuple[int, ...]) -> None:
    check_attention(*make(SHAPE), attn_mask=normal(*form), backend=backend)


@pytest.mark.parametrize("dtype", [BF16, F16, F64])
def test_float_masks_in_other_dtypes(backend: str, dtype: torch.dtype) -> None:
    check_attention(*make(SHAPE, dtype), attn_mask=normal(5, MANY, dtype=dtype), backend=backend)


def test_minus_infinity_excludes(backend: str) -> None:
    """A float mask of 0 and -inf is the bool mask; its gradient is 0 where it excludes."""
    inputs = make(SHAPE)
    keep = torch.rand(5, MANY) < 0.5
    keep[2] = False
    mask = torch.zeros(5, MANY).masked_fill(~keep, NEG_INF).requires_grad_()
    check_attention(*inputs, attn_mask=mask, return_weights=True, return_lse=True, backend=backend)
    context = additive_attention(*inputs, attn_mask=mask, backend=backend)
    (gradient,) = torch.autograd.grad(context.square().sum(), mask)
    assert (gradient[~keep] == 0).all() and gradient.isfinite().all()

    def by_float(*inputs: Tensor, attn_mask: Tensor) -> Tensor:
        zeros = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, NEG_INF)
        return additive_attention(*inputs, attn_mask=zeros, backend=backend)

    check_attention(*inputs, attn_mask=keep, backend=by_float)


def test_strided_masks(backend: str) -> None:
    keep = torch.rand(2, 5, MANY) < 0.6
    check_attention(*make(SHAPE), attn_mask=keep.mT.contiguous().mT, backend=backend)
    check_attention(*make(SHAPE), attn_mask=transposed(normal(2, 5, MANY)), backend=backend)
    check_attention(
        *make(SHAPE),
        attn_mask=normal(5, 2 * MANY)[:, ::2].detach().requires_grad_(),
        backend=backend,
    )
    expanded = normal(1, 1, MANY, grad=False).expand(2, 5, MANY).requires_grad_()
    check_attention(*make(SHAPE), attn_mask=expanded, backend=backend)


@pytest.mark.parametrize(
    "n, m",
    [
        (1, 1),
        (5, 5),
        (3, 9),
        (9, 3),
        (1, MANY),
        (MANY, 1),
        *(pytest.param(*each, marks=pytest.mark.large) for each in ((130, 260), (270, 131))),
    ],
)
def test_causal(backend: str, n: int, m: int) -> None:
    check_attention(*make((2, n, m, 9, 4)), is_causal=True, return_lse=True, backend=backend)


def test_causal_lets_a_key_take_part_from_its_own_row_on(backend: str) -> None:
    _, weights = additive_attention(
        *make((1, 4, 6, 3, 2)), is_causal=True, return_weights=True, backend=backend
    )
    assert torch.equal(weights[0] != 0, torch.ones(4, 6).tril().bool())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "lengths",
    [
        [0, MANY],
        [MANY, 0],
        [1, MANY - 1],
        [MANY - 12, MANY - 11],
        [0, 0],
        33,
        [[7], [MANY - 12], [0]],
    ],
    ids=str,
)
def test_lengths(backend: str, lengths: Any, dtype: torch.dtype) -> None:
    check_attention(
        *make(SHAPE),
        key_lengths=torch.tensor(lengths, dtype=dtype),
        return_lse=True,
        backend=backend,
    )


@pytest.mark.parametrize("shape", [(3, 1, 700, 19, 7), (3, 33, 300, 19, 7)], ids=str)
def test_lengths_of_a_decoder_step_and_of_several_tiles(backend: str, shape: Any) -> None:
    m = shape[2]
    lengths = torch.tensor([0, 129, m])
    check_attention(*make(shape), key_lengths=lengths, return_weights=True, backend=backend)


def test_lengths_may_be_expanded(backend: str) -> None:
    check_attention(
        *make(SHAPE), key_lengths=torch.tensor([MANY // 2 + 7]).expand(2), backend=backend
    )


def combined(backend: str, mask: Tensor) -> None:
    check_attention(
        *make(SHAPE),
        attn_mask=mask,
        key_lengths=torch.tensor([3, MANY - 20]),
        is_causal=True,
        return_weights=True,
        return_lse=True,
        backend=backend,
    )


def test_all_three_combine(backend: str) -> None:
    combined(backend, torch.rand(2, 1, MANY) < 0.5)
    combined(backend, normal(5, MANY))
    combined(
        backend,
        normal(5, MANY, grad=False)
        .masked_fill(torch.rand(5, MANY) < 0.5, NEG_INF)
        .requires_grad_(),
    )


@pytest.mark.large
def test_a_whole_tile_masked_in_the_middle(backend: str) -> None:
    """Skipping a fully masked tile leaves its neighbours unchanged."""
    keep = torch.ones(270, 400, dtype=torch.bool)
    keep[:, 128:256] = False
    keep[256:] = False
    check_attention(*make((1, 270, 400, 9, 5)), attn_mask=keep, return_lse=True, backend=backend)


NOTHING_LEFT: dict[str, dict[str, Any]] = {
    "bool mask": {"attn_mask": torch.zeros(5, 1, dtype=torch.bool)},
    "float mask": {"attn_mask": torch.full((5, MANY), NEG_INF)},
    "lengths": {"key_lengths": torch.tensor([0, 0])},
    "mask and lengths": {"attn_mask": torch.arange(MANY) > 3, "key_lengths": torch.tensor([4, 1])},
    "mask and causal": {"attn_mask": torch.arange(MANY) > 5, "is_causal": True},
    "dropout too": {"key_lengths": torch.tensor([0, 0]), "dropout_p": 0.5},
}


@pytest.mark.parametrize("options", NOTHING_LEFT.values(), ids=NOTHING_LEFT)
@pytest.mark.parametrize("dtype", [torch.float32, BF16, F64])
def test_a_row_with_nothing_left(backend: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Context 0, lse -inf, weights 0, zero gradients through each of the three, and never NaN."""
    inputs = make(SHAPE, dtype)
    options = dict(options)
    mask = options.get("attn_mask")
    if mask is not None and mask.dtype != torch.bool:
        options["attn_mask"] = mask = mask.to(dtype).requires_grad_()
        inputs = (*inputs, mask)
    outputs = additive_attention(
        *inputs[:4], return_weights=True, return_lse=True, backend=backend, **options
    )
    context, weights, lse = outputs
    assert (context == 0).all() and (weights == 0).all() and lse.isneginf().all()
    for output in outputs:
        gradients = torch.autograd.grad(
            output, inputs, torch.ones_like(output), retain_graph=True, allow_unused=True
        )
        assert all(g is None or (g == 0).all() for g in gradients)
    alone = additive_attention(*inputs[:4], backend=backend, **options)
    assert (alone == 0).all()


def test_rows_with_nothing_left_among_others(backend: str) -> None:
    keep = torch.rand(2, 5, MANY) < 0.5
    keep[0, 1] = keep[1, 4] = False
    keep[1, 0] = False
    keep[1, 0, MANY - 1] = True
    check_attention(
        *make(SHAPE), attn_mask=keep, return_weights=True, return_lse=True, backend=backend
    )


@pytest.mark.parametrize("shape", [(40, 1), (1, MANY), (1, 1)], ids=str)
def test_the_gradient_of_a_mask_that_many_pairs_share(backend: str, shape: tuple[int, int]) -> None:
    """Many equal terms are added, whose sum in one variable would be off in the same direction."""
    query, key, value, weight = make((2, 40, MANY, 5, 3))
    with torch.no_grad():
        weight.zero_()
    for _ in range(2 if INTERPRETED else 8):
        mask = normal(*shape)
        check_attention(
            query, key, value, weight, attn_mask=mask, return_lse=True, through=("lse",),
            backend=backend,
        )  # fmt: skip
