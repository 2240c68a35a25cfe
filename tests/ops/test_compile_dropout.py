"""Dropout in compiled functions: the backward's mask is the forward's, and the seed is eager's.

The values are the identity, so that the results show the weights, and the gradient of the values
shows the weights that the backward computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch._functorch.config
from helpers.inputs import cumulative, normal
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from attnkernels import additive_attention, additive_attention_varlen, prepare_keys
from attnkernels.nn import AdditiveAttention

N = 24
Call = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


def dense(backend: str) -> Call:
    return partial(additive_attention, dropout_p=0.5, backend=backend)


def twice(backend: str) -> Call:
    """Two calls with the same arguments, whose seeds must differ."""

    def call(*inputs: Tensor) -> Tensor:
        return torch.cat([dense(backend)(*inputs)[:, ::2], dense(backend)(*inputs)[:, ::2]], 1)

    return call


def varlen(backend: str) -> Call:
    ends = cumulative([10, 14])

    def call(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        return additive_attention_varlen(
            query, key, value, weight, ends, ends, dropout_p=0.5, backend=backend
        )

    return call


def prepared(backend: str) -> Call:
    def call(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        memory = prepare_keys(key, value, weight, backend=backend)
        return torch.cat([memory.attend(q, dropout_p=0.5) for q in query.split(8, 1)], 1)

    return call


def module(backend: str) -> Call:
    attention = AdditiveAttention(8, 8, 8, dropout=0.5, backend=backend)
    return lambda query, key, value, weight: attention(query, key, value)


CALLS = {"dense": dense, "twice": twice, "varlen": varlen, "prepared": prepared, "module": module}


def recomputed(*_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_RECOMPUTE


def seed_saved(ctx: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    seed = "rand" in str(op) or "seed" in str(op)
    return CheckpointPolicy.MUST_SAVE if seed else CheckpointPolicy.MUST_RECOMPUTE


def selective(policy: Any) -> Callable[[Call], Call]:
    contexts = partial(create_selective_checkpoint_contexts, policy)
    return lambda call: partial(checkpoint, call, use_reentrant=False, context_fn=contexts)


CHECKPOINTS: dict[str, Callable[[Call], Call]] = {
    "non-reentrant": lambda call: partial(checkpoint, call, use_reentrant=False),
    "reentrant": lambda call: partial(checkpoint, call, use_reentrant=True),
    "recomputed": selective(recomputed),
    "seed saved": selective(seed_saved),
}


def weights_of(call: Call) -> tuple[Tensor, Tensor]:
    """Return the weights of the forward and of the backward, of seed 5."""
    query, key, weight = normal(2, N, 8), normal(2, N, 8), normal(8)
    value = torch.eye(N).repeat(2, 1, 1).requires_grad_()
    torch.manual_seed(5)
    out = call(query, key, value, weight)
    # The gradient is the identity, so that of the values is the transpose of the weights.
    out.backward(torch.eye(N).expand_as(out))
    assert value.grad is not None
    return out.detach(), value.grad.mT


def check(call: Call, budget: float = 1.0) -> Tensor:
    with torch._functorch.config.patch(activation_memory_budget=budget):
        forward, backward = weights_of(call)
    torch.testing.assert_close(backward, forward)
    assert (forward != 0).any() and (forward == 0).any()
    return forward


def traced(call: Call, **options: Any) -> Call:
    return torch.compile(call, backend="aot_eager", **options)


@pytest.mark.parametrize("budget", [0.9, 0.0])
@pytest.mark.parametrize("name", CALLS)
def test_the_mask_is_that_of_the_forward_and_of_eager(fused: str, name: str, budget: float) -> None:
    call = CALLS[name](fused)
    forward = check(traced(call, fullgraph=True), budget)
    torch.manual_seed(0)
    assert torch.equal(check(call) != 0, forward != 0)
    if name == "twice":  # equal nodes are not one
        assert not torch.equal(*(half != 0 for half in forward.split(N // 2, 1)))


@pytest.mark.parametrize("budget", [1.0, 0.0])
def test_inductor_draws_the_seed_of_eager(fused: str, budget: float) -> None:
    call = dense(fused)
    forward = check(torch.compile(call, fullgraph=True, dynamic=True), budget)
    torch.manual_seed(0)
    assert torch.equal(check(call) != 0, forward != 0)


def test_a_region_with_no_memory(fused: str) -> None:
    region = getattr(torch.autograd.graph, "region_activation_memory_budget", None)
    if region is None:
        pytest.skip("this torch has no budgets of regions")

    def call(*inputs: Tensor) -> Tensor:
        with region(0.0):
            return dense(fused)(*inputs)

    check(traced(call, fullgraph=True))


@pytest.mark.parametrize("way", CHECKPOINTS)
def test_checkpoints(fused: str, way: str) -> None:
    """Compile what is checkpointed, or checkpoint what is compiled."""
    through, call = CHECKPOINTS[way], dense(fused)
    check(through(call))
    check(through(traced(call)), 0.5)
    torch.compiler.reset()
    check(traced(through(call)), 0.5)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_seeds_of_examples(randomness: str) -> None:
    """Examples of torch.func.vmap share a seed or have one each, as in eager mode."""
    query, key, weight = normal(3, 4, 6), normal(5, 6), normal(6)

    def call(query: Tensor) -> Tensor:
        return additive_attention(
            query, key, torch.eye(5), weight, dropout_p=0.5, backend="reference"
        )

    def examples(query: Tensor) -> Tensor:
        return torch.func.vmap(call, randomness=randomness)(query)

    torch.manual_seed(5)
    found = traced(examples, fullgraph=True)(query)
    torch.manual_seed(5)
    torch.testing.assert_close(found, examples(query))
