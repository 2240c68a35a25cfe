"""Forward and backward within the budget, at the corners of shape, dtype, layout and option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import (
    BF16,
    BUT_TANH,
    CORNERS,
    EMPTY,
    F16,
    F32,
    F64,
    Altered,
    Shape,
    batch_last,
    make,
    normal,
    sliced,
    supports,
    transposed,
)
from torch import Tensor

from attnkernels import additive_attention
from attnkernels.testing import check_attention

PAST_THE_TILES: Shape = (1, 130, 257, 64, 48)


@pytest.mark.parametrize("shape", CORNERS, ids=str)
def test_shapes(backend: str, shape: Shape) -> None:
    check_attention(*make(shape), backend=backend)


@pytest.mark.parametrize("dtype", [BF16, F16, F64])
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 5, 8, 7), (4, 7, 9, 33, 1), (2, 2, 300, 36, 5), (3, 1, 201, 40, 203), PAST_THE_TILES],
    ids=str,
)
def test_dtypes(backend: str, shape: Shape, dtype: torch.dtype) -> None:
    check_attention(*make(shape, dtype), backend=backend)


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_empty(backend: str, shape: Shape) -> None:
    """Sizes of 0 give zeros and -inf of the right shape, and zero gradients."""
    batch, n, m, _, dv = shape
    inputs = make(shape)
    context, weights, lse = additive_attention(
        *inputs, return_weights=True, return_lse=True, backend=backend
    )
    assert context.shape == (batch, n, dv)
    assert weights.shape == (batch, n, m)
    assert lse.shape == (batch, n)
    if m == 0:
        assert (context == 0).all() and lse.isneginf().all()
    loss = context.sum() + weights.square().sum() + (lse.sum() if m else 0)
    for gradient, x in zip(torch.autograd.grad(loss, inputs), inputs, strict=True):
        assert gradient.shape == x.shape
        assert gradient.isfinite().all()
    check_attention(*make(shape), backend=backend)


@pytest.mark.parametrize("shape", [(12, 9, 1024, 4, 1), (12, 9, 3001, 4, 1)], ids=str)
def test_long_sums_of_one_sign(backend: str, shape: Shape) -> None:
    """The errors of sums over keys do not add up."""
    query, key, value, weight = make(shape, size=0.1)
    check_attention(query, key, value.detach().abs().requires_grad_(), weight, backend=backend)


@pytest.mark.parametrize("activation", BUT_TANH)
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 8, 7), (1, 1, 300, 65, 4), (1, 70, 140, 33, 20)], ids=str
)
def test_activations(backend: str, shape: Shape, activation: str) -> None:
    check_attention(*make(shape), activation=activation, backend=backend)


@pytest.mark.parametrize("slope", [0.0, 0.7, 1.0])
def test_negative_slope(backend: str, slope: float) -> None:
    check_attention(
        *make((2, 5, 40, 19, 3)), activation="leaky_relu", negative_slope=slope, backend=backend
    )


@pytest.mark.parametrize("dtype", [BF16, F64])
def test_the_other_activations_in_other_dtypes(backend: str, dtype: torch.dtype) -> None:
    for shape in ((2, 5, 40, 19, 3), (2, 1, 40, 70, 20)):
        for activation in BUT_TANH:
            check_attention(*make(shape, dtype), activation=activation, backend=backend)


@pytest.mark.parametrize("scale", [0.0, -1.5, 30.0])
def test_scale(backend: str, scale: float) -> None:
    check_attention(*make((2, 7, 40, 19, 3)), scale=scale, backend=backend)


def test_everything_at_once(backend: str) -> None:
    check_attention(
        *make((2, 40, 150, 33, 9)),
        attn_mask=normal(2, 1, 150),
        key_lengths=torch.tensor([150, 70]),
        is_causal=True,
        activation="sigmoid",
        scale=0.7,
        return_weights=True,
        return_lse=True,
        backend=backend,
    )


def heads(
    *leads: tuple[int, ...], n: int = 5, m: int = 37, d: int = 18, dv: int = 6
) -> list[Tensor]:
    query, key, value, weight = leads
    return [
        normal(*query, n, d),
        normal(*key, m, d),
        normal(*value, m, dv),
        normal(*weight, d, size=0.3),
    ]


LEADS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((), (), (), ()),
    "two, outer": ((2, 1), (1, 3), (), ()),
    "a weight a head": ((2, 3), (2, 3), (2, 3), (3,)),
    "a weight an entry": ((2, 3), (2, 3), (2, 3), (2, 3)),
    "only the weight": ((), (), (), (3,)),
    "only the value": ((), (), (2, 3), ()),
    "one key for all": ((4, 2), (), (1, 2), (2,)),
    "one query for all": ((1,), (3,), (3,), ()),
    "three deep": ((2, 1, 2), (1, 3, 1), (2, 1, 1), (3, 1)),
    "none of them": ((0, 2), (1, 2), (2,), ()),
}


@pytest.mark.parametrize("leads", LEADS.values(), ids=LEADS)
def test_leading_dimensions_broadcast(backend: str, leads: tuple[tuple[int, ...], ...]) -> None:
    check_attention(*heads(*leads), backend=backend)


def test_masks_and_lengths_may_bring_leading_dimensions(backend: str) -> None:
    inputs = heads((), (), (), ())
    check_attention(*inputs, attn_mask=normal(2, 1, 5, 37), backend=backend)
    check_attention(*inputs, key_lengths=torch.tensor([[3], [37], [0]]), backend=backend)
    context = additive_attention(
        *inputs, key_lengths=torch.tensor([[3], [37], [0]]), backend=backend
    )
    assert context.shape == (3, 1, 5, 6)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": transposed,
    "sliced": sliced,
    "batch last": batch_last,
}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 5, 40, 19, 7), (2, 1, 40, 32, 16)], ids=str)
def test_layouts(backend: str, shape: Shape, layout: str, dtype: torch.dtype) -> None:
    query, key, value, weight = make(shape, dtype)
    strided = [LAYOUTS[layout](x) for x in (query, key, value)]
    check_attention(*strided, sliced(weight[None])[0].detach().requires_grad_(), backend=backend)


def test_expanded_keys_are_as_good_as_copies(backend: str) -> None:
    """Use stride 0 along the batch, along the rows and along the columns."""
    query, key, value, weight = make((3, 5, 40, 19, 7), grad=False)
    for key_ in (
        key[:1].expand(3, 40, 19),
        key[:, :1].expand(3, 40, 19),
        key[..., :1].expand(3, 40, 19),
    ):
        inputs = [
            x.requires_grad_()
            for x in (query.clone(), key_, value[:1].expand(3, 40, 7), weight.clone())
        ]
        check_attention(*inputs, backend=backend)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2), ()], ids=str)
def test_only_the_gradients_asked_for(backend: str, wanted: tuple[int, ...]) -> None:
    inputs = make((2, 5, 40, 19, 7), grad=False)
    for i in wanted:
        inputs[i].requires_grad_()
    check_attention(*inputs, backend=backend)


@pytest.mark.parametrize("output", ["context", "weights", "lse"])
@pytest.mark.parametrize("shape", [(2, 5, 40, 19, 7), (2, 1, 300, 19, 7)], ids=str)
def test_gradients_through_one_output_alone(backend: str, shape: Shape, output: str) -> None:
    check_attention(
        *make(shape), return_weights=True, return_lse=True, through=(output,), backend=backend
    )


@pytest.mark.parametrize("shape", [(2, 70, 150, 33, 40), (2, 2, 150, 33, 5)], ids=str)
def test_without_determinism(backend: str, shape: Shape) -> None:
    """Without deterministic algorithms, blocks add to one place in any order."""
    torch.use_deterministic_algorithms(False)
    check_attention(*make(shape), attn_mask=normal(*shape[1:3]), backend=backend)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 6, 40, 19, 7), (2, 1, 40, 19, 16)], ids=str)
def test_layouts_of_incoming_gradients(
    backend: str, shape: Shape, layout: str, dtype: torch.dtype
) -> None:
    def call(*inputs: Tensor, **options: Any) -> Any:
        outputs = additive_attention(*inputs, backend=backend, **options)
        return tuple(Altered.apply(x, LAYOUTS[layout]) for x in outputs)

    check_attention(*make(shape, dtype), return_weights=True, return_lse=True, backend=call)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_an_expanded_incoming_gradient(fused: str, dtype: torch.dtype) -> None:
    """The expanded gradient of sum().backward() gives the same bits as a tensor of ones."""
    inputs = make((2, 6, 40, 19, 7), dtype)
    options = {"return_weights": True, "return_lse": True, "backend": fused}
    outputs = additive_attention(*inputs, **options)
    by_sum = torch.autograd.grad(sum(x.sum().float() for x in outputs), inputs, retain_graph=True)
    by_ones = torch.autograd.grad(outputs, inputs, [torch.ones_like(x) for x in outputs])
    assert all(torch.equal(a, b) for a, b in zip(by_sum, by_ones, strict=True))


def test_backward_twice_accumulates(backend: str) -> None:
    inputs = make((2, 6, 40, 19, 7))
    context = additive_attention(*inputs, backend=backend)
    context.sum().backward(retain_graph=True)
    once = [x.grad.clone() for x in inputs]
    context.sum().backward()
    assert all(torch.equal(x.grad, 2 * first) for x, first in zip(inputs, once, strict=True))


def test_the_same_tensor_as_key_and_value(backend: str) -> None:
    query, key, _, weight = make((2, 6, 40, 19, 1))
    context = additive_attention(query, key, key, weight, backend=backend)
    (both,) = torch.autograd.grad(context.square().sum(), key)
    copies = key.detach().clone().requires_grad_(), key.detach().clone().requires_grad_()
    context = additive_attention(query, *copies, weight, backend=backend)
    first, second = torch.autograd.grad(context.square().sum(), copies)
    assert torch.equal(both, first + second)


def test_outputs_come_in_order_and_in_their_dtypes(backend: str) -> None:
    for dtype, acc in ((F32, F32), (BF16, F32), (F16, F32), (F64, F64)):
        if not supports(backend, dtype):
            continue
        inputs = make((2, 3, 5, 4, 6), dtype)
        context = additive_attention(*inputs, backend=backend)
        assert isinstance(context, Tensor) and context.dtype == dtype
        with_lse = additive_attention(*inputs, return_lse=True, backend=backend)
        assert [x.dtype for x in with_lse] == [dtype, acc]
        assert [x.shape for x in with_lse] == [(2, 3, 6), (2, 3)]
        everything = additive_attention(
            *inputs, return_weights=True, return_lse=True, backend=backend
        )
        assert [x.dtype for x in everything] == [dtype, dtype, acc]
        assert [x.shape for x in everything] == [(2, 3, 6), (2, 3, 5), (2, 3)]


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_autocast_casts_as_matmul_does(backend: str, dtype: torch.dtype) -> None:
    inputs, mask = make((2, 3, 5, 4, 6)), normal(3, 5)
    with torch.autocast("cpu", dtype):
        context, lse = additive_attention(*inputs, attn_mask=mask, return_lse=True, backend=backend)
        if supports(backend, F64):
            doubles = additive_attention(*make((2, 3, 5, 4, 6), F64), backend=backend)
            assert doubles.dtype == F64
        mixed = additive_attention(inputs[0], *(x.to(dtype) for x in inputs[1:]), backend=backend)
    assert context.dtype == mixed.dtype == dtype and lse.dtype == F32
    cast = additive_attention(
        *(x.to(dtype) for x in inputs), attn_mask=mask.to(dtype), backend=backend
    )
    assert torch.equal(context, cast)
    assert all(g.dtype == F32 for g in torch.autograd.grad(context.sum(), inputs))


def test_no_grad_gives_the_same_numbers(backend: str) -> None:
    inputs = make((2, 6, 40, 19, 7))
    with torch.no_grad():
        quiet = additive_attention(*inputs, backend=backend)
    with torch.inference_mode():
        assert torch.equal(quiet, additive_attention(*inputs, backend=backend))
    assert not quiet.requires_grad
    assert torch.equal(quiet, additive_attention(*inputs, backend=backend))


def test_inputs_are_left_as_they_were(backend: str) -> None:
    inputs = make((2, 6, 40, 19, 7))
    before = [x.detach().clone() for x in inputs]
    additive_attention(*inputs, is_causal=True, dropout_p=0.2, backend=backend).sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("lead", [(2,), (3, 2)], ids=str)
def test_one_key_for_a_batch(backend: str, lead: tuple[int, ...]) -> None:
    """All queries are then rows of one problem."""
    for options in ({}, {"return_weights": True}, {"return_lse": True}):
        inputs = normal(*lead, 3, 6), normal(5, 6), normal(5, 2), normal(6)
        check_attention(*inputs, **options, backend=backend)
