"""torch.func: grad and vjp agree with autograd, vmap with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.inputs import BF16, F16, F64, make, normal
from torch import Tensor
from torch.func import grad, vmap

from attnkernels import additive_attention, additive_scores
from attnkernels.testing import assert_within_budget, check_attention, check_scores

SHAPE = (3, 4, 5, 6, 2)


class Through(torch.autograd.Function):
    """Calls forward(*inputs), with backward(forward, inputs, gradients) as its derivative."""

    @staticmethod
    def forward(ctx: Any, forward: Any, backward: Any, *inputs: Tensor) -> Any:
        ctx.functions = forward, backward
        ctx.save_for_backward(*inputs)
        return forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        forward, backward = ctx.functions
        return None, None, *backward(forward, ctx.saved_tensors, gradients)


def by_grad(call: Callable[..., Any], inputs: Any, gradients: Any) -> Any:
    """Return torch.func.grad of the outputs weighted by `gradients`."""

    def loss(*inputs: Tensor) -> Tensor:
        outputs = call(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum((x * g).sum() for x, g in zip(outputs, gradients, strict=True))

    return grad(loss, argnums=tuple(range(len(inputs))))(*inputs)


def by_vjp(call: Callable[..., Any], inputs: Any, gradients: Any) -> Any:
    outputs, pull = torch.func.vjp(call, *inputs)
    return pull(gradients if isinstance(outputs, tuple) else gradients[0])


@pytest.mark.parametrize("way", [by_grad, by_vjp])
def test_gradients(backend: str, way: Callable[..., Any]) -> None:
    """Gradients pass through context, weights and lse, also for the mask."""

    def call(*inputs: Tensor, attn_mask: Tensor, **options: Any) -> Any:
        def forward(*inputs: Tensor) -> Any:
            *inputs, mask = inputs
            return additive_attention(*inputs, attn_mask=mask, backend=backend, **options)

        return Through.apply(forward, way, *inputs, attn_mask)

    mask = normal(4, 5)
    check_attention(*make(SHAPE), attn_mask=mask, is_causal=True, backend=call)
    check_attention(
        *make(SHAPE), attn_mask=mask, return_weights=True, return_lse=True, backend=call
    )


@pytest.mark.parametrize("way", [by_grad, by_vjp])
def test_gradients_of_scores(backend: str, way: Callable[..., Any]) -> None:
    query, key, _, weight = make(SHAPE)
    forward = partial(additive_scores, backend=backend)
    check_scores(query, key, weight, backend=lambda *inputs: Through.apply(forward, way, *inputs))


@pytest.mark.parametrize("which", [(0, 1, 2), (0,), (1,), (2,), (1, 2)], ids=str)
def test_vmap_is_one_more_leading_dimension(backend: str, which: tuple[int, ...]) -> None:
    """Examples have the leading shape (2,); tensors that are not mapped are shared."""
    inputs = normal(2, 4, 6), normal(2, 5, 6), normal(2, 5, 2), normal(6)
    stacked = [normal(3, *x.shape) if place in which else x for place, x in enumerate(inputs)]
    in_dims = tuple(0 if place in which else None for place in range(4))

    def call(*inputs: Tensor, **options: Any) -> Any:
        return vmap(partial(additive_attention, backend=backend, **options), in_dims)(*inputs)

    check_attention(*stacked, return_weights=True, return_lse=True, backend=call)
    check_attention(*stacked, is_causal=True, backend=call)
    check_attention(*stacked, window_size=(1, 2), backend=call)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_vmap_rounds_sums_of_gradients(backend: str, dtype: torch.dtype) -> None:
    """The gradient of what examples share is rounded once, also where theirs cancel."""
    query = normal(32, 3, 6, dtype=dtype, grad=False)
    key, value, weight = (
        normal(5, 6, dtype=dtype),
        normal(5, 2, dtype=dtype),
        normal(6, dtype=dtype),
    )
    direction = torch.randn(32, 3, 2).to(dtype)

    def gradients(name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        shared = [x.detach().to(dtype).requires_grad_() for x in (key, value, weight)]
        call = vmap(partial(additive_attention, backend=name), (0, None, None, None))
        twice = call(torch.cat([query, query]).to(dtype), *shared)
        return torch.autograd.grad(
            twice, shared, torch.cat([direction, -0.98 * direction]).to(twice)
        )

    found = gradients(backend, dtype), gradients("reference", dtype), gradients("reference", F64)
    for name, *results in zip(("key", "value", "weight"), *found, strict=True):
        assert_within_budget(*results, name=name)


def test_vmap_of_other_dimensions(backend: str) -> None:
    """The mapped dimension may be anywhere, also on the weight."""

    def call(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        tensors = query.movedim(0, 1), key, value.movedim(0, 3), weight[:, 0].mT
        return vmap(partial(additive_attention, backend=backend), (1, 0, 3, 1), 1)(
            *tensors
        ).movedim(1, 0)

    check_attention(
        normal(3, 2, 4, 6), normal(3, 2, 5, 6), normal(3, 2, 5, 2), normal(3, 1, 6), backend=call
    )


def test_vmap_of_masks_and_lengths(backend: str) -> None:
    def call(*inputs: Tensor, attn_mask: Tensor, key_lengths: Tensor, **options: Any) -> Any:
        def example(mask: Tensor, lengths: Tensor) -> Any:
            return additive_attention(
                *inputs, attn_mask=mask, key_lengths=lengths, backend=backend, **options
            )

        return vmap(example)(attn_mask.squeeze(1), key_lengths)

    lengths = torch.tensor([[0, 5], [2, 3], [5, 1]])
    for mask in (normal(3, 1, 4, 5), torch.rand(3, 1, 4, 5) < 0.7):
        check_attention(
            *make((2, 4, 5, 6, 2)),
            attn_mask=mask,
            key_lengths=lengths,
            return_lse=True,
            backend=call,
        )


def test_vmap_of_scores(backend: str) -> None:
    query, key, _, weight = make(SHAPE)
    call = vmap(partial(additive_scores, backend=backend), (0, 0, None))
    check_scores(query, key, weight, backend=call)


def test_per_sample_gradients(backend: str) -> None:
    """vmap of grad: with one weight per example, each has the gradient of its example."""

    def backward(forward: Callable[..., Any], inputs: Any, gradients: Any) -> Any:
        def loss(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, g: Tensor) -> Tensor:
            return (additive_attention(query, key, value, weight, backend=backend) * g).sum()

        return vmap(grad(loss, argnums=(0, 1, 2, 3)))(*inputs, *gradients)

    def call(*inputs: Tensor) -> Tensor:
        return Through.apply(partial(additive_attention, backend=backend), backward, *inputs)

    query, key, value, _ = make(SHAPE)
    check_attention(query, key, value, normal(3, 6), backend=call)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_with_dropout_follows_randomness(backend: str, randomness: str) -> None:
    """Examples share a seed or have one each; a backend that cannot do it raises ValueError."""
    query, key, value, weight = (normal(4, 6), normal(5, 6), normal(5, 2), normal(6))

    def call(query: Tensor) -> Tensor:
        return additive_attention(query, key, value, weight, dropout_p=0.5, backend=backend)

    try:
        first, second, _ = vmap(call, randomness=randomness)(query.expand(3, 4, 6))
    except ValueError as refusal:
        assert "vmap" in str(refusal) and "dropout" in str(refusal)
    else:
        assert torch.equal(first, second) == (randomness == "same")


def test_vmap_refuses_dropout_by_default(backend: str) -> None:
    """torch refuses every random operation by default."""
    query, key, value, weight = make(SHAPE)

    def call(query: Tensor) -> Tensor:
        return additive_attention(query, key[0], value[0], weight, dropout_p=0.5, backend=backend)

    with pytest.raises(RuntimeError, match="random"):
        vmap(call)(query)
