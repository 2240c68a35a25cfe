"""The base of attentions whose weights depend on those of earlier steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from ..functional import checks
from ..functional.attention import additive_attention
from ..functional.results import Pair
from ..functional.stepwise import StepwiseMemory, recomputes
from ..ops.codes import PrecisionName
from . import inputs
from .calls import Reading
from .inputs import present
from .projected import (
    AlignmentState,
    accumulated,
    aligned,
    beams_of_memory,
    mask_of_step,
    masks_of_steps,
    project_memory,
)
from .projections import Projections
from .reading import Alignment, Bounds, read_as_forward, split, within

if TYPE_CHECKING:
    from .overloads import MasksEitherWay, MasksNoWeights, MasksWithWeights, Unpack

Initial = Literal["zeros", "uniform"]


@dataclass(frozen=True, eq=False, repr=False)
class RecomputedState(AlignmentState):
    """The state of steps whose keys are computed again in the backward.

    Attributes:
        steps: those that are left.
    """

    steps: StepwiseMemory


class StepwiseAttention(Projections):
    """The base of attentions that add to the keys something that depends on earlier weights.

        s_ij = scale * w . tanh(W q_i + V h_j + added_ij + b)

    A subclass calls `_set_options` in its constructor, and computes ``added`` in `added_keys`: a
    convolution of the weights `seen` with the `filter`. Do not use this class directly.
    """

    def _set_options(
        self,
        *,
        initial: Initial,
        cumulates: bool,
        scale: float,
        precision: PrecisionName,
        backend: str | None,
    ) -> None:
        """Check and keep what a constructor takes besides the arguments of `Projections`.

        Args:
            initial: the weights before the first step, "zeros" or "uniform" (1 / length each).
            cumulates: keep the sum of the weights in the states.
            scale, precision, backend: as in `attnkernels.additive_attention`.

        Raises:
            TypeError, ValueError: ``initial``, ``scale``, ``precision`` or ``backend`` is wrong.
        """
        checks.choice("initial", initial, ("zeros", "uniform"))
        self.scale = checks.number("scale", scale)
        inputs.precision_name(precision)
        inputs.backend_name(backend)
        self.initial, self.cumulates = initial, cumulates
        self.precision, self.backend = precision, backend

    def reset_parameters(self) -> None:
        """Reset all parameters, those of a subclass's layers by their own rules."""
        super().reset_parameters()
        for layer in self.children():
            if layer is not self.query_proj and layer is not self.key_proj:
                layer.reset_parameters()  # type: ignore[operator]

    def added_keys(self, state: AlignmentState) -> Tensor:
        """Return the term added to the keys, (B, m, hidden_dim)."""
        raise NotImplementedError

    def seen(self, state: AlignmentState) -> Tensor:
        """Return the earlier weights that the term depends on, (B, c, m)."""
        raise NotImplementedError

    def filter(self) -> Tensor | None:
        """Return the filter (c, taps, hidden_dim), or None where it must not stand for layers."""
        raise NotImplementedError

    def for_steps(self, state: AlignmentState, steps: int) -> AlignmentState:
        """Return the state before up to `steps` steps that keep as little as they can.

        The backend "reference" keeps what autograd saves, as the plain formula does.
        """
        if self.backend == "reference" or not state.keys.numel():
            return state
        tensors = state.keys, state.value, state.weight
        if not recomputes(*tensors, *self.parameters()):
            return state
        filter = self.filter()
        if filter is None:
            return state
        memory = StepwiseMemory(
            *tensors,
            filter,
            key_lengths=state.key_lengths,
            scale=self.scale,
            precision=self.precision,
            backend=self.backend,
            steps=steps,
        )
        return RecomputedState(**vars(state), steps=memory)

    def prepare(
        self, memory: Tensor, key_lengths: Tensor | None = None, value: Tensor | None = None
    ) -> AlignmentState:
        """Return the state before the first step.

        Args:
            memory: (B, m, key_dim), of the dtype of the parameters.
            key_lengths: (B,), int32 or int64, in [0, m]: positions at and beyond the length are
                never looked at, whatever they hold. The range is checked on a CPU only.
            value: (B, m, value_dim); by default the memory.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        return self._begin("memory", memory, key_lengths, value)

    def step(
        self, query: Tensor, state: AlignmentState, *, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, AlignmentState]:
        """Attend once.

        Args:
            query: (B, query_dim), of the dtype of the parameters.
            state: from `prepare`, or from the last step.
            attn_mask: (B, m) or (m,), sizes may be 1; bool (True takes part) or of query's
                dtype (added to the score; -inf excludes).

        Returns:
            The context (B, value_dim), the weights (B, m) and the state for the next step.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        attn_mask = mask_of_step(self, query, state, attn_mask)
        return self._attend(self._queries(query, True), state, attn_mask)

    def read(
        self,
        query: Tensor,
        prepared: AlignmentState,
        alignment: Alignment | None = None,
        bounds: Bounds | None = None,
        *,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor, Alignment]:
        """Attend with one query per beam, for a decoder: see `DecoderAttention.read`.

        Beams of a sequence share its projected keys and its values. The sum of the keys with
        `added_keys`, (R, m, hidden_dim), exists for the time of the call.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        beams = beams_of_memory(self, query, prepared)
        state = aligned(prepared, alignment, beams)
        m = prepared.keys.shape[1]
        mask = None if bounds is None else within(bounds, m).unsqueeze(1)

        def attend(query: Tensor) -> tuple[Tensor, Tensor, Alignment]:
            found = self._attend(self._queries(query, True), state, mask)
            context, weights, after = found
            return context, weights, Alignment(after.previous, after.cumulative)

        return read_as_forward(self, query, attend)

    @overload
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None = ..., **o: Unpack[MasksNoWeights]
    ) -> Tensor: ...
    @overload
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None = ..., **o: Unpack[MasksWithWeights]
    ) -> Pair: ...
    @overload
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor | None = ..., **o: Unpack[MasksEitherWay]
    ) -> Tensor | Pair: ...
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        key_lengths: Tensor | None = None,
        attn_mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | Pair:
        """Attend with all queries, one step after another.

        Args:
            query: (B, n, query_dim).
            key: (B, m, key_dim), the memory of `prepare`.
            value, key_lengths: as in `prepare`.
            attn_mask: (B, n, m), sizes may be 1, or (m,); otherwise as in `step`.
            return_weights: also return the weights.

        Returns:
            The contexts (B, n, value_dim), or a tuple of them and the weights (B, n, m).

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        if type(key) is Reading:
            return key.attend(query)
        checks.flags(return_weights=return_weights)
        state = self._begin("key", key, key_lengths, value)
        masks = masks_of_steps(self, query, state, attn_mask)
        if attn_mask is None or not attn_mask.requires_grad:
            state = self.for_steps(state, query.shape[1])
        # Split once: slicing at each step would give gradients as large as all queries.
        projected = self._queries(query).split(1, 1)
        contexts, weights = [], []
        for row, mask in zip(projected, masks, strict=False):
            context, weight, state = self._attend(row, state, mask)
            contexts.append(context)
            weights.append(weight)
        if not contexts:
            batch, m, width = state.value.shape
            context, weight = (state.value.new_zeros(batch, 0, size) for size in (width, m))
        else:
            context, weight = torch.stack(contexts, 1), torch.stack(weights, 1)
        return (context, weight) if return_weights else context

    def _begin(
        self, name: str, memory: Tensor, key_lengths: Tensor | None, value: Tensor | None
    ) -> AlignmentState:
        """Run `prepare` on a memory that the caller calls `name`."""
        projected = project_memory(self, name, memory, key_lengths, value)
        batch, m, _ = projected.keys.shape
        previous = projected.keys.new_zeros(batch, m)
        if self.initial == "uniform" and key_lengths is None:
            previous = previous + 1 / max(m, 1)
        elif self.initial == "uniform":
            assert key_lengths is not None
            share = 1 / key_lengths.clamp(min=1).unsqueeze(-1)
            previous = torch.where(present(key_lengths, m), share.to(previous.dtype), 0.0)
        cumulative = previous.to(accumulated(previous.dtype)) if self.cumulates else None
        return AlignmentState(**vars(projected), previous=previous, cumulative=cumulative)

    def _attend(
        self, query: Tensor, state: AlignmentState, attn_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, AlignmentState]:
        """Attend with a projected query (R, 1, hidden_dim); attn_mask is (R, 1, m).

        The state has R rows of weights, and keys, values and lengths of B sequences: R is B, or a
        multiple for beams that share them.
        """
        if isinstance(state, RecomputedState):
            context, weights = state.steps.attend(query, self.seen(state), attn_mask)
            return self._after(state, context, weights)
        keys, value, key_lengths = state.keys, state.value, state.key_lengths
        batch, rows = state.batch, query.shape[0]
        added = None
        if keys.shape[1]:  # a convolution does not accept an empty input
            added = self.added_keys(state)
        if rows != batch:
            query, keys, value = split(query, batch), keys.unsqueeze(1), value.unsqueeze(1)
            added = None if added is None else split(added, batch)
            attn_mask = None if attn_mask is None else split(attn_mask, batch)
            key_lengths = None if key_lengths is None else key_lengths.unsqueeze(1)
        context, weights = additive_attention(
            query,
            keys if added is None else keys + added,
            value,
            state.weight,
            attn_mask=attn_mask,
            key_lengths=key_lengths,
            scale=self.scale,
            precision=self.precision,
            return_weights=True,
            backend=self.backend,
        )
        if rows != batch:
            context, weights = context.flatten(0, 1), weights.flatten(0, 1)
        return self._after(state, context, weights)

    def _after(
        self, state: AlignmentState, context: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, AlignmentState]:
        """Return context (R, 1, value_dim) and weights (R, 1, m) without the 1, and the state."""
        context, weights = context.squeeze(-2), weights.squeeze(-2)
        sums = state.cumulative
        sums = None if sums is None else sums + weights
        return context, weights, replace(state, previous=weights, cumulative=sums)

    if TYPE_CHECKING:
        __call__ = forward
