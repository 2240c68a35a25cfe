"""The gradient of keys that many steps share, made once for all steps and not once a step.

A step's gradient of the keys is a [B, m, d] tensor, for one query: written, added to the others,
and thrown away. Here a step's backward makes the gradient of its query alone, and hands the query
and the gradients of its results on to the node that the keys come from. That node runs after all
the steps, when it has the backward of one attention of all queries: its cost is that of a tile,
not of as many steps, and of [B, m, d] there is one.

Queries and gradients travel as gradients of placeholders, tensors without storage of which each
step takes one. So autograd itself knows which steps took part in a backward, and there is no state
that several backwards, or one that stops short of the keys, could find in the wrong place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .attention import additive_attention
from .memory import AdditiveMemory

Gradients = tuple[Tensor | None, ...]


class DeferredMemory:
    """`AdditiveMemory.attend` for up to `steps` single queries whose key gradients are made last.

    Results and first derivatives are those of `memory.attend`; asking for second ones is an error.

    Args:
        memory: whose key, value and weight want gradients.
        steps: how often `attend` may be called.
        return_weights: whether `attend` returns the weights as well.
    """

    def __init__(self, memory: AdditiveMemory, steps: int, return_weights: bool) -> None:
        tensors = (memory.key, memory.value, memory.weight)
        key, value, weight = (x.detach() for x in tensors)
        self.memory = replace(memory, key=key, value=value, weight=weight)
        self.return_weights = return_weights
        self.progress = _Progress()
        placeholders = _Keys.apply(memory, steps, return_weights, self.progress, *tensors)
        self.left: Iterator[tuple[Tensor, ...]] = zip(
            *(x.unbind(0) for x in placeholders), strict=True
        )

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor | None]:
        """Context (*lead, 1, dv) of query (*lead, 1, d), and weights (*lead, 1, m) or None."""
        self.progress.taken += 1
        weights: Tensor | None = None
        if self.return_weights:
            context, weights = self.memory.attend(query, return_weights=True)
        else:
            context = self.memory.attend(query)
        return _Step.apply(query, context, weights, *next(self.left))


class RepeatedMemory:
    """`AdditiveMemory.attend` for single queries, nobody knows how many, with deferred gradients.

    The first step makes its own, as there may be no other; those of later ones are made for up to
    `MOST` steps at a time. After a backward it begins anew.
    """

    MOST = 64

    def __init__(self, memory: AdditiveMemory) -> None:
        self.memory, self.begun = memory, False
        self.deferred: DeferredMemory | None = None

    def attend(self, query: Tensor) -> Any:
        """Context (*lead, 1, dv) of query (*lead, 1, d), and weights (*lead, 1, m)."""
        if self.deferred is not None and self.deferred.progress.done:
            self.begun, self.deferred = False, None
        if not self.begun or not learns(self.memory):
            self.begun = True
            return self.memory.attend(query, return_weights=True)
        if self.deferred is None or self.deferred.progress.taken == self.MOST:
            self.deferred = DeferredMemory(self.memory, self.MOST, return_weights=True)
        return self.deferred.attend(query)


@dataclass
class _Progress:
    """How many steps of a `DeferredMemory` were taken, and whether its gradients were made."""

    taken: int = 0
    done: bool = False


def learns(memory: AdditiveMemory) -> bool:
    """Whether anything of it wants a gradient now."""
    tensors = memory.key, memory.value, memory.weight
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


class _Keys(torch.autograd.Function):
    """Placeholders of the queries, contexts and weights; their gradients are those of the keys."""

    @staticmethod
    def forward(
        ctx: Any,
        memory: AdditiveMemory,
        steps: int,
        return_weights: bool,
        progress: _Progress,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(key, value, weight)
        ctx.progress = progress
        ctx.options = {
            "key_lengths": memory.key_lengths,
            "activation": memory.activation,
            "negative_slope": memory.negative_slope,
            "scale": memory.scale,
            "backend": memory.backend,
            "return_weights": return_weights,
        }
        sizes = [key.shape[-1], value.shape[-1], *[key.shape[-2]] * return_weights]
        return tuple(key.new_zeros(()).expand(steps, *memory.lead, 1, size) for size in sizes)

    @staticmethod
    def backward(ctx: Any, query: Tensor, *grads: Tensor) -> Gradients:
        ctx.progress.done, taken = True, ctx.progress.taken
        wanted = ctx.needs_input_grad[4:]
        with torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
            inputs = [
                x.detach().requires_grad_(want)
                for x, want in zip(ctx.saved_tensors, wanted, strict=True)
            ]
            results = additive_attention(_rows(query[:taken]), *inputs, **ctx.options)
            found = torch.autograd.grad(
                results,
                [x for x in inputs if x.requires_grad],
                [_rows(grad[:taken]) for grad in grads],
            )
        gradients = iter(found)
        return None, None, None, None, *(next(gradients) if want else None for want in wanted)


class _Step(torch.autograd.Function):
    """Hands a step's results through, and in backward the step to the placeholders."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, context: Tensor, weights: Tensor | None, *placeholders: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(query)
        ctx.places = len(placeholders)
        ctx.set_materialize_grads(False)
        return context.view_as(context), None if weights is None else weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        if torch.is_grad_enabled():  # the step's attention does not know that its keys want any
            raise RuntimeError(
                "gradients were asked for with create_graph=True, and those of keys that are "
                "deferred until after the steps have no second derivatives: make AttentionRNN with "
                "defer_gradients=False, or leave this module out of replace_attention"
            )
        if all(grad is None for grad in grads):
            return (None,) * (3 + ctx.places)
        return None, *grads, *ctx.saved_tensors, *grads[: ctx.places - 1]


def _rows(steps: Tensor) -> Tensor:
    """(steps, *lead, 1, size) -> (*lead, steps, size)."""
    return steps.squeeze(-2).movedim(0, -2)
