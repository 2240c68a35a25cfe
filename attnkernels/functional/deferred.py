"""The gradient of keys that many steps share, computed once for all steps instead of per step.

Each step's gradient of the keys is a [B, m, d] tensor for a single query, which is written, added
to the others and freed. Here the backward of a step computes only the gradient of its query, and
passes the query and the gradients of its results on to the node that the keys come from. That node
runs after all steps and computes the backward of one attention of all queries: at the cost of a
tile instead of many steps, with a single [B, m, d] tensor.

Queries and gradients travel as the gradients of placeholders: tensors without storage, one per
step. Autograd itself thereby knows which steps took part in a backward. No state is kept that
several backwards, or one that stops before the keys, could corrupt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .attention import additive_attention
from .memory import AdditiveMemory
from .results import Pair

Gradients = tuple[Tensor | None, ...]


class DeferredMemory:
    """Call `AdditiveMemory.attend` for up to `steps` single queries; defer the keys' gradients.

    Results and first derivatives are those of `memory.attend`. Second derivatives and forward-mode
    ones raise an error.

    Args:
        memory: a memory whose key, value or weight requires a gradient.
        steps: the largest number of calls of `attend`.
        return_weights: also return the weights from `attend`.
    """

    def __init__(self, memory: AdditiveMemory, steps: int, return_weights: bool) -> None:
        _refuse_forward_transforms()
        memory.refuse_stale()
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
        """Return context (*lead, 1, dv) of query (*lead, 1, d), and weights or None."""
        _refuse_forward_transforms()
        self.progress.taken += 1
        weights: Tensor | None = None
        if self.return_weights:
            context, weights = self.memory.attend(query, return_weights=True)
        else:
            context = self.memory.attend(query)
        return _Step.apply(query, context, weights, *next(self.left))


class RepeatedMemory:
    """Call `AdditiveMemory.attend` for any number of single queries; defer the keys' gradients.

    The first step computes its own gradient, since it may be the only one. The gradients of later
    steps are computed for up to `MOST` steps at a time. A backward starts this over.

    Nothing is deferred where hooks save tensors: activation checkpointing computes a step again,
    and wants it to save as many tensors as at first, whatever steps came in between.
    """

    MOST = 64

    def __init__(self, memory: AdditiveMemory) -> None:
        self.memory, self.begun = memory, False
        self.deferred: DeferredMemory | None = None

    def attend(self, query: Tensor) -> Pair:
        """Return context (*lead, 1, dv) of query (*lead, 1, d), and weights (*lead, 1, m)."""
        if hooks_save_tensors():
            return self.memory.attend(query, return_weights=True)
        if self.deferred is not None and self.deferred.progress.done:
            self.begun, self.deferred = False, None
        if not self.begun or not learns(self.memory):
            self.begun = True
            return self.memory.attend(query, return_weights=True)
        if self.deferred is None or self.deferred.progress.taken == self.MOST:
            self.deferred = DeferredMemory(self.memory, self.MOST, return_weights=True)
        context, weights = self.deferred.attend(query)
        assert weights is not None
        return context, weights


@dataclass
class _Progress:
    """The progress of a `DeferredMemory`: steps taken, and True once gradients were computed."""

    taken: int = 0
    done: bool = False


def learns(memory: AdditiveMemory) -> bool:
    """Return True if some tensor of `memory` requires a gradient and gradients are enabled.

    Inside a level of forward-mode AD return False: deferred gradients have no tangents. Return
    False, with the same results, under transforms of `torch.func` and torch.compile too: neither
    can trace gradients that wait for each other.
    """
    tensors = memory.key, memory.value, memory.weight
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return learning and in_plain_autograd()


def in_plain_autograd() -> bool:
    """Return False inside a level of forward-mode AD, a transform or a traced function."""
    if forward_ad._current_level >= 0:
        return False
    return not _are_functorch_transforms_active() and not is_dynamo_compiling()


def hooks_save_tensors() -> bool:
    """Return True inside of `torch.autograd.graph.saved_tensors_hooks`."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class _Keys(torch.autograd.Function):
    """Make placeholders, whose gradients become those of key, value and weight."""

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
        # A copy: FSDP2 may have freed a parameter by the time of the backward below.
        ctx.save_for_backward(key, value, weight.clone())
        ctx.progress = progress
        ctx.options = {
            "key_lengths": memory.key_lengths,
            "activation": memory.activation,
            "negative_slope": memory.negative_slope,
            "scale": memory.scale,
            "precision": memory.precision,
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

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> NoReturn:
        refuse_tangents()


class _Step(torch.autograd.Function):
    """Pass a step's results through; in the backward, pass the step to the placeholders."""

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
        if torch.is_grad_enabled():  # the keys are constants for the step's attention
            raise RuntimeError(
                "create_graph must be False where the gradients of the keys are deferred until "
                "after the steps, because these have no second derivatives, got True: make "
                "AttentionRNN, or the model that holds it, with defer_gradients=False, or leave "
                "this module out of replace_attention"
            )
        if all(grad is None for grad in grads):
            return (None,) * (3 + ctx.places)
        return None, *grads, *ctx.saved_tensors, *grads[: ctx.places - 1]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> NoReturn:
        refuse_tangents()


def _refuse_forward_transforms() -> None:
    """Raise before torch.func does: it misses `setup_context`, which would not help."""
    if forward_ad._current_level >= 0 and _are_functorch_transforms_active():
        refuse_tangents()


def refuse_tangents() -> NoReturn:
    raise NotImplementedError(
        "forward-mode derivatives cannot pass through deferred gradients: make the memory, or call"
        " the module, inside the level of forward-mode AD, which turns them off"
    )


def _rows(steps: Tensor) -> Tensor:
    """Return (steps, *lead, 1, size) as (*lead, steps, size)."""
    return steps.squeeze(-2).movedim(0, -2)
