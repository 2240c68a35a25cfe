"""The projected memory of attentions that attend step by step, and the checks of their steps."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..functional import checks
from ..functional.memory import described
from . import inputs
from .inputs import present, zero_padding
from .projections import Projections
from .reading import Alignment, beams_of

M = TypeVar("M", bound="ProjectedMemory")


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
