"""The base of attentions whose weights depend on those of earlier steps."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, TypeVar, overload

import torch
from torch import Tensor

from ..functional import checks
from ..functional.attention import additive_attention
from ..functional.memory import described
from ..functional.results import Pair
from . import inputs
from .calls import Reading
from .inputs import present, zero_padding
from .projections import Projections
from .reading import Alignment, Bounds, beams_of, read_as_forward, split, within

if TYPE_CHECKING:
    from .overloads import MasksEitherWay, MasksNoWeights, MasksWithWeights, Unpack

M = TypeVar("M", bound="ProjectedMemory")
Initial = Literal["zeros", "uniform"]


@dataclass(frozen=True, eq=False, repr=False)
class ProjectedMemory:
    """The part of a memory that a decoder keeps between steps; immutable.

    `torch.load` with ``weights_only=True`` needs its class in
    ``torch.serialization.add_safe_globals``.

    Attributes:
        keys: (B, m, hidden_dim), the projected memory.
        value: (B, m, value_dim).
        weight: (hidden_dim,), the vector that scores.
        key_lengths: (B,) or None. keys and value are zeros beyond the length.
    """

    keys: Tensor
    value: Tensor
    weight: Tensor
    key_lengths: Tensor | None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({described(vars(self))})"

    @property
    def batch(self) -> int:
        """B, the number of sequences to attend to."""
        return self.keys.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the keys."""
        return self.keys.device

    @property
    def value_dim(self) -> int:
        """Features of a context."""
        return self.value.shape[-1]

    def index_select(self: M, index: Tensor) -> M:
        """Return the entries `index` (1-D, int32 or int64) of the batch: reorder beams.

        Raises:
            IndexError, RuntimeError: as `torch.index_select`.
        """
        batched = {
            each.name: tensor.index_select(0, index)
            for each in fields(self)
            if each.name != "weight" and (tensor := getattr(self, each.name)) is not None
        }
        return replace(self, **batched)


@dataclass(frozen=True, eq=False, repr=False)
class AlignmentState(ProjectedMemory):
    """A projected memory and the weights of the steps so far.

    Attributes:
        previous: (B, m), the weights of the last step.
        cumulative: (B, m), their sum over all steps, in float32 (float64 for float64), since fewer
            bits cannot hold a sum over hundreds of steps. None if the module does not use it.
    """

    previous: Tensor
    cumulative: Tensor | None


class StepwiseAttention(Projections):
    """The base of attentions that add to the keys something that depends on earlier weights.

        s_ij = scale * w . tanh(W q_i + V h_j + added_ij + b)

    A subclass calls `_set_options` in its constructor, and computes ``added`` in `added_keys`. Do
    not use this class directly.
    """

    def _set_options(
        self, *, initial: Initial, cumulates: bool, scale: float, backend: str | None
    ) -> None:
        """Check and keep what a constructor takes besides the arguments of `Projections`.

        Args:
            initial: the weights before the first step, "zeros" or "uniform" (1 / length each).
            cumulates: keep the sum of the weights in the states.
            scale, backend: as in `attnkernels.additive_attention`.

        Raises:
            TypeError, ValueError: ``initial``, ``scale`` or ``backend`` is wrong.
        """
        checks.choice("initial", initial, ("zeros", "uniform"))
        self.scale = checks.number("scale", scale)
        inputs.backend_name(backend)
        self.initial, self.cumulates, self.backend = initial, cumulates, backend

    def reset_parameters(self) -> None:
        """Reset all parameters, those of a subclass's layers by their own rules."""
        super().reset_parameters()
        for layer in self.children():
            if layer is not self.query_proj and layer is not self.key_proj:
                layer.reset_parameters()  # type: ignore[operator]

    def added_keys(self, state: AlignmentState) -> Tensor:
        """Return the term added to the keys, (B, m, hidden_dim)."""
        raise NotImplementedError

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
        return self._attend(self._queries(query.unsqueeze(1)), state, attn_mask)

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
            found = self._attend(self._queries(query.unsqueeze(1)), state, mask)
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
            return_weights=True,
            backend=self.backend,
        )
        context, weights = context.squeeze(-2), weights.squeeze(-2)
        if rows != batch:
            context, weights = context.flatten(0, 1), weights.flatten(0, 1)
        sums = state.cumulative
        sums = None if sums is None else sums + weights
        return context, weights, replace(state, previous=weights, cumulative=sums)

    if TYPE_CHECKING:
        __call__ = forward


def project_memory(
    module: Projections,
    name: str,
    memory: Tensor,
    key_lengths: Tensor | None,
    value: Tensor | None,
) -> ProjectedMemory:
    """Check a memory (B, m, key_dim) and project it; rows beyond the length count as zeros."""
    padded_value = value is not None
    memory, value = inputs.memory(module, name, memory, value, key_lengths)
    return ProjectedMemory(
        keys=module._keys(memory),
        value=zero_padding(value, key_lengths) if padded_value else value,
        weight=module.score_weight(),
        key_lengths=key_lengths,
    )


def beams_of_memory(module: Projections, query: Tensor, prepared: ProjectedMemory) -> int:
    """Check the arguments of `DecoderAttention.read`; return the beams per sequence."""
    checks.instance("prepared", prepared, ProjectedMemory, "what attention.prepare() returned")
    return beams_of(module, query, prepared.batch)


def aligned(prepared: AlignmentState, alignment: Alignment | None, beams: int) -> AlignmentState:
    """Return the state with the weights (R, m) of `alignment`, or those before the first step."""
    previous, cumulative = prepared.previous, prepared.cumulative
    if alignment is not None and alignment.previous is not None:
        previous, cumulative = alignment.previous, alignment.cumulative
    elif beams != 1:
        previous = previous.repeat_interleave(beams, 0)
        cumulative = None if cumulative is None else cumulative.repeat_interleave(beams, 0)
    return replace(prepared, previous=previous, cumulative=cumulative)


def mask_of_step(
    module: Projections,
    query: Tensor,
    state: ProjectedMemory,
    attn_mask: Tensor | None,
    name: str = "state",
) -> Tensor | None:
    """Check the arguments of one step, its state called `name`; return the mask as (B, 1, m)."""
    checks.instance(name, state, ProjectedMemory, "what prepare() or step() returned")
    inputs.query(module, query, state.batch, "")
    shape = state.keys.shape[:2]
    attn_mask = inputs.mask(attn_mask, query, B=shape[0], m=shape[1])
    return None if attn_mask is None else attn_mask.expand(shape).unsqueeze(1)


def mask_of_steps(
    module: Projections, query: Tensor, state: ProjectedMemory, attn_mask: Tensor | None
) -> Tensor | None:
    """Check the arguments of n steps, and return their mask as (B, n, m)."""
    inputs.query(module, query, state.batch)
    (batch, n, _), m = query.shape, state.keys.shape[1]
    attn_mask = inputs.mask(attn_mask, query, B=batch, n=n, m=m)
    return None if attn_mask is None else attn_mask.expand(batch, n, m)


def masks_of_steps(
    module: Projections, query: Tensor, state: ProjectedMemory, attn_mask: Tensor | None
) -> list[Tensor | None]:
    """Check the arguments of n steps, and return the mask (B, 1, m) of each, or None."""
    full = mask_of_steps(module, query, state, attn_mask)
    n = query.shape[1]
    return [None] * n if full is None else [full[:, i : i + 1] for i in range(n)]


def masked_scores(scores: Tensor, key_lengths: Tensor | None, attn_mask: Tensor | None) -> Tensor:
    """Return scores (B, n, m) in the dtype of sums, with -inf for keys that take no part."""
    scores = scores.to(accumulated(scores.dtype))
    if key_lengths is not None:
        taking_part = present(key_lengths, scores.shape[-1]).unsqueeze(1)
        scores = torch.where(taking_part, scores, float("-inf"))
    if attn_mask is None:
        return scores
    if attn_mask.dtype is torch.bool:
        return torch.where(attn_mask, scores, float("-inf"))
    return scores + attn_mask


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
