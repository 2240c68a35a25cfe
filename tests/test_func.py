"""torch.func: grad agrees with autograd, vmap with a loop."""

from __future__ import annotations

import pytest
import torch
from inputs import make, normal
from torch import Tensor
from torch.func import grad, vmap

from attnkernels import additive_attention, additive_scores

SHAPE = (3, 4, 5, 6, 2)


def test_grad_agrees_with_autograd(backend: str) -> None:
    inputs = make(SHAPE)

    def loss(*tensors: Tensor) -> Tensor:
        return additive_attention(*tensors, is_causal=True, backend=backend).square().sum()

    found = grad(loss, argnums=(0, 1, 2, 3))(*inputs)
    wanted = torch.autograd.grad(loss(*inputs), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_grad_through_a_mask_weights_and_lse(backend: str) -> None:
    inputs, mask = make(SHAPE), normal(4, 5)

    def loss(mask: Tensor, *tensors: Tensor) -> Tensor:
        _, weights, lse = additive_attention(
            *tensors, attn_mask=mask, return_weights=True, return_lse=True, backend=backend
        )
        return weights.square().sum() + lse.sum()

    torch.testing.assert_close(
        grad(loss)(mask, *inputs), torch.autograd.grad(loss(mask, *inputs), mask)[0]
    )


@pytest.mark.parametrize(
    "in_dims",
    [
        (0, 0, 0, None),
        (0, None, None, None),
        (None, 0, None, None),
        (None, None, None, 0),
        (1, 0, 2, 0),
    ],
    ids=str,
)
def test_vmap_agrees_with_a_loop(backend: str, in_dims: tuple[int | None, ...]) -> None:
    """Three examples, each with two leading entries of its own."""
    query, key, value, weight = normal(2, 4, 6), normal(2, 5, 6), normal(2, 5, 2), normal(6)
    singles = (query, key, value, weight)
    stacked = tuple(
        x if at is None else torch.stack([x * c for c in (1.0, 0.5, -1.0)], at)
        for x, at in zip(singles, in_dims, strict=True)
    )

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return additive_attention(*tensors, return_lse=True, backend=backend)

    found = vmap(call, in_dims)(*stacked)
    examples = [
        call(
            *(x if at is None else x.select(at, i) for x, at in zip(stacked, in_dims, strict=True))
        )
        for i in range(3)
    ]
    for part, output in enumerate(found):
        torch.testing.assert_close(output, torch.stack([example[part] for example in examples]))


def test_vmap_of_masks_and_lengths(backend: str) -> None:
    query, key, value, weight = make((2, 4, 5, 6, 2))
    masks, lengths = normal(3, 4, 5), torch.tensor([[0, 5], [2, 3], [5, 1]])

    def call(mask: Tensor, length: Tensor) -> Tensor:
        return additive_attention(
            query, key, value, weight, attn_mask=mask, key_lengths=length, backend=backend
        )

    wanted = torch.stack([call(mask, length) for mask, length in zip(masks, lengths, strict=True)])
    torch.testing.assert_close(vmap(call)(masks, lengths), wanted)


def test_vmap_of_scores(backend: str) -> None:
    query, key, _, weight = make(SHAPE)
    found = vmap(lambda q, k: additive_scores(q, k, weight, backend=backend))(query, key)
    torch.testing.assert_close(found, additive_scores(query, key, weight, backend=backend))


def test_per_sample_gradients(backend: str) -> None:
    """vmap of grad: the gradient of weight, an example."""
    query, key, value, weight = make(SHAPE)

    def loss(weight: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return additive_attention(query, key, value, weight, backend=backend).square().sum()

    found = vmap(grad(loss), (None, 0, 0, 0))(weight, query, key, value)
    wanted = [
        torch.autograd.grad(loss(weight, query[i], key[i], value[i]), weight)[0]
        for i in range(SHAPE[0])
    ]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_vmap_with_dropout_follows_randomness(backend: str) -> None:
    """One seed for all examples, one for each, or torch's own refusal."""
    query, key, value, weight = (normal(4, 6), normal(5, 6), normal(5, 2), normal(6))
    repeated = query.expand(3, 4, 6)

    def call(query: Tensor) -> Tensor:
        return additive_attention(query, key, value, weight, dropout_p=0.5, backend=backend)

    same = vmap(call, randomness="same")(repeated)
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    different = vmap(call, randomness="different")(repeated)
    assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="random"):
        vmap(call)(repeated)
