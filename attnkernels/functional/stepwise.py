"""Steps of attention whose keys see the weights of earlier steps, recomputed in the backward.

Autograd would keep the keys of every step, [B, m, d], and write their gradient, as large, once more
per step. Here a step keeps its query and the weights that it sees, [B, c, m], and its backward
computes the keys again (see `aligned`).

What all steps share gets its gradient in one tensor that the steps hand on: each step has a
placeholder of the key as an input and another as an output. In the backward the gradient of the
output is the sum of the later steps' gradients, to which the step adds its own. The gradient of the
values is one product of all weights and all gradients of contexts, as in `deferred`. No state is
kept that several backwards, or one of some steps alone, could corrupt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.compiler import is_exporting

from ..ops.codes import PrecisionName
from .aligned import Inputs, Scoring, add_gradients, differentiate, step
from .autocast import follows_autocast
from .deferred import Gradients, hooks_save_tensors, in_plain_autograd, refuse_tangents
from .results import Pair


class StepwiseMemory:
    """Attend with up to `steps` single queries, one step after another.

    Results, and derivatives of every order in reverse mode, are those of `aligned.attended`.

    Args:
        key, value, weight, filter: as in `aligned.Inputs`, m at least 1.
        key_lengths, scale, precision, backend: as in `additive_attention`.
        steps: the largest number of calls of `attend`.
    """

    def __init__(
        self,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
        filter: Tensor,
        *,
        key_lengths: Tensor | None,
        scale: float,
        precision: PrecisionName,
        backend: str | None,
        steps: int,
    ) -> None:
        self._scoring = Scoring(key_lengths, None, scale, precision, backend)
        # Copies: FSDP2 may have freed a parameter by the time of a step's backward.
        weight, filter = (x.clone(memory_format=torch.contiguous_format) for x in (weight, filter))
        self._shared = _cast(key.contiguous(), value, weight, filter)
        *self._sums, contexts, weights = _Shared.apply(steps, *self._shared)
        self._left: Iterator[tuple[Tensor, Tensor]] = zip(
            contexts.unbind(0), weights.unbind(0), strict=True
        )

    def attend(self, query: Tensor, seen: Tensor, attn_mask: Tensor | None = None) -> Pair:
        """Return context (B, 1, dv) and weights (B, 1, m) of query (B, 1, d) and seen (B, c, m)."""
        query, seen = _cast(query, seen)
        scoring = self._scoring._replace(attn_mask=attn_mask)
        tensors = query.contiguous(), seen, *self._shared, *self._sums, *next(self._left)
        with torch.autocast(query.device.type, enabled=False):
            context, weights, *self._sums = _Step.apply(scoring, *tensors)
        return context, weights


def recomputes(*tensors: Tensor) -> bool:
    """Return True if steps with these tensors can be recomputed and their gradients summed.

    As with deferred gradients, transforms, tangents, compilation, and hooks that save tensors, such
    as those of activation checkpointing, get plain operations.
    """
    if not in_plain_autograd() or is_exporting() or torch.jit.is_tracing() or hooks_save_tensors():
        return False
    return all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)


@follows_autocast
def _cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors


class _Shared(torch.autograd.Function):
    """Make placeholders, tensors without storage, whose gradients become those of the inputs."""

    @staticmethod
    def forward(
        ctx: Any, steps: int, key: Tensor, value: Tensor, weight: Tensor, filter: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # Sums over steps take more bits than the inputs may have.
        sums = torch.promote_types(key.dtype, torch.float32)
        batch, m, _ = key.shape
        shapes = [key.shape, weight.shape, filter.shape]
        each = (steps, batch, 1, value.shape[-1]), (steps, batch, 1, m)
        return (
            *(key.new_zeros((), dtype=sums).expand(shape) for shape in shapes),
            *(key.new_zeros(()).expand(shape) for shape in each),
        )

    @staticmethod
    def backward(
        ctx: Any,
        key: Tensor | None,
        weight: Tensor | None,
        filter: Tensor | None,
        contexts: Tensor | None,
        weights: Tensor | None,
    ) -> Gradients:
        value = None
        if ctx.needs_input_grad[2] and contexts is not None and weights is not None:
            value = weights.squeeze(2).permute(1, 2, 0) @ contexts.squeeze(2).transpose(0, 1)
        return None, key, value, weight, filter


class _Step(torch.autograd.Function):
    """Compute one step; add its gradients of key, weight and filter to those of later steps."""

    @staticmethod
    def forward(ctx: Any, scoring: Scoring, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, sums = Inputs(*tensors[:6]), tensors[6:9]
        context, weights = step(inputs, scoring)
        ctx.save_for_backward(*inputs, weights)
        ctx.scoring = scoring
        ctx.set_materialize_grads(False)
        return context, weights, *(x.view_as(x) for x in sums)

    @staticmethod
    def backward(
        ctx: Any, dcontext: Tensor | None, dweights: Tensor | None, *sums: Tensor | None
    ) -> Gradients:
        if dcontext is None and dweights is None:
            return *[None] * 7, *sums, None, None
        *tensors, weights = ctx.saved_tensors
        inputs, wanted, grads = Inputs(*tensors), ctx.needs_input_grad[1:7], (dcontext, dweights)
        with torch.autocast(weights.device.type, enabled=False):
            if torch.is_grad_enabled():
                found = differentiate(inputs, ctx.scoring, wanted, grads, True)
                return None, *found, *sums, None, None
            given = inputs, weights, ctx.scoring, wanted, grads, list(sums)
            query, seen, *added = add_gradients(*given)
        return None, query, seen, *[None] * 4, *added, dcontext, weights

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> NoReturn:
        refuse_tangents()
