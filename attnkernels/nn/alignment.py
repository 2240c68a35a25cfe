"""What attentions have in common whose weights depend on those of the steps before."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..functional.attention import additive_attention
from .projections import Projections, check_features, present, zero_padding

M = TypeVar("M", bound="ProjectedMemory")


@dataclass(frozen=True, eq=False)
class ProjectedMemory:
    """What a decoder keeps of a memory between steps. It never changes.

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

    def index_select(self: M, index: Tensor) -> M:
        """The entries `index` (1-D, int32 or int64) of the batch: how a beam is reordered.

        Raises:
            IndexError, RuntimeError: as `torch.index_select`.
        """
        batched = {
            each.name: tensor.index_select(0, index)
            for each in fields(self)
            if each.name != "weight" and (tensor := getattr(self, each.name)) is not None
        }
        return replace(self, **batched)


@dataclass(frozen=True, eq=False)
class AlignmentState(ProjectedMemory):
    """A projected memory and where the steps so far have looked.

    Attributes:
        previous: (B, m), the weights of the step before.
        cumulative: (B, m), their sum over all steps, in float32 (float64 for float64): a sum over
            hundreds of steps has no room in fewer bits. None where nothing asks for it.
    """

    previous: Tensor
    cumulative: Tensor | None


class StepwiseAttention(Projections):
    """The base of attentions that add something to the keys which depends on earlier weights.

        s_ij = scale * w . tanh(W q_i + V h_j + added_ij + b)

    A subclass says in `added_keys` what it adds. Not to be used itself.

    Args:
        query_dim, key_dim, hidden_dim, bias, normalize, device, dtype: as `Projections`.
        initial: the weights before the first step, "zeros" or "uniform" (1 / length each).
        cumulates: whether states keep the sum of the weights.
        scale, backend: as in `attnkernels.additive_attention`.

    Raises:
        ValueError: a size is not a positive int, or ``initial`` is neither.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        initial: str,
        cumulates: bool,
        bias: bool,
        normalize: bool,
        scale: float,
        backend: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(
            query_dim,
            key_dim,
            hidden_dim,
            bias=bias,
            normalize=normalize,
            device=device,
            dtype=dtype,
        )
        check_choice("initial", initial, ("zeros", "uniform"))
        self.initial, self.cumulates = initial, cumulates
        self.scale, self.backend = scale, backend

    def reset_parameters(self) -> None:
        """Draw all parameters anew, those of the layers that a subclass adds as they do."""
        super().reset_parameters()
        for layer in self.children():
            if layer is not self.query_proj and layer is not self.key_proj:
                layer.reset_parameters()  # type: ignore[operator]

    def added_keys(self, state: AlignmentState) -> Tensor:
        """What is added to the keys, (B, m, hidden_dim)."""
        raise NotImplementedError

    def prepare(
        self, memory: Tensor, key_lengths: Tensor | None = None, value: Tensor | None = None
    ) -> AlignmentState:
        """The state before the first step.

        Args:
            memory: (B, m, key_dim).
            key_lengths: (B,), int32 or int64, in [0, m]: positions at and beyond the length are
                never looked at, whatever they hold. The range is checked on a CPU only.
            value: (B, m, value_dim); by default the memory.

        Raises:
            TypeError, ValueError: a shape, dtype or length does not fit.
        """
        projected = project_memory(self, memory, key_lengths, value)
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

    def step(
        self, query: Tensor, state: AlignmentState, *, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, AlignmentState]:
        """Attend once.

        Args:
            query: (B, query_dim).
            state: from `prepare`, or from the step before.
            attn_mask: broadcastable to (B, m); bool (True takes part) or floating (added).

        Returns:
            context (B, value_dim), weights (B, m) and the state for the next step.

        Raises:
            TypeError, ValueError: a shape or dtype does not fit.
        """
        check_step(self, query, state)
        mask = None if attn_mask is None else broadcast_mask(attn_mask, state.previous.shape)
        projected = self.project_query(query.unsqueeze(1))
        return self._attend(projected, state, None if mask is None else mask.unsqueeze(1))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        key_lengths: Tensor | None = None,
        attn_mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Any:
        """All queries, one step after another.

        Args:
            query: (B, n, query_dim).
            key: (B, m, key_dim).
            value: (B, m, value_dim); by default the key.
            key_lengths: (B,), as in `prepare`.
            attn_mask: broadcastable to (B, n, m); bool (True takes part) or floating (added).
            return_weights: also return the weights.

        Returns:
            context (B, n, value_dim), or a tuple of it and weights (B, n, m).

        Raises:
            TypeError, ValueError: a shape or dtype does not fit.
        """
        state = self.prepare(key, key_lengths, value)
        check_queries(self, query, state)
        masks = masks_of_steps(attn_mask, query, state)
        # `split` once, not a slice a step, whose gradients would each be as large as all queries.
        projected = self.project_query(query).split(1, 1)
        contexts, weights = [], []
        for row, mask in zip(projected, masks, strict=False):
            context, weight, state = self._attend(row, state, mask)
            contexts.append(context)
            weights.append(weight)
        return stacked(contexts, weights, state, return_weights)

    def _attend(
        self, query: Tensor, state: AlignmentState, attn_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, AlignmentState]:
        """query (B, 1, hidden_dim), projected; attn_mask (B, 1, m)."""
        keys = state.keys
        if keys.shape[1]:  # a convolution refuses to look at nothing
            keys = keys + self.added_keys(state)
        context, weights = additive_attention(
            query,
            keys,
            state.value,
            state.weight,
            attn_mask=attn_mask,
            key_lengths=state.key_lengths,
            scale=self.scale,
            return_weights=True,
            backend=self.backend,
        )
        weights = weights.squeeze(1)
        sums = state.cumulative
        sums = None if sums is None else sums + weights
        return context.squeeze(1), weights, replace(state, previous=weights, cumulative=sums)


def project_memory(
    module: Projections, memory: Tensor, key_lengths: Tensor | None, value: Tensor | None
) -> ProjectedMemory:
    """Check a memory (B, m, key_dim) and project it; rows beyond the length count as zeros."""
    check_features("memory", memory, module.key_dim, "key_dim")
    if memory.ndim != 3:
        raise ValueError(f"memory has shape {tuple(memory.shape)}; it must be (B, m, key_dim)")
    if value is not None and (value.ndim != 3 or value.shape[:2] != memory.shape[:2]):
        raise ValueError(
            f"value has shape {tuple(value.shape)}; it must be (B, m, value_dim) with the (B, m) "
            f"of the memory, {tuple(memory.shape[:2])}"
        )
    if key_lengths is not None:
        _check_lengths(key_lengths, memory)
        memory = zero_padding(memory, key_lengths)
        value = None if value is None else zero_padding(value, key_lengths)
    return ProjectedMemory(
        keys=module.project_key(memory),
        value=memory if value is None else value,
        weight=module.score_weight(),
        key_lengths=key_lengths,
    )


def masked_scores(scores: Tensor, key_lengths: Tensor | None, attn_mask: Tensor | None) -> Tensor:
    """scores (B, n, m) in the dtype of sums, -inf for what takes no part."""
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
    """The dtype of sums: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def broadcast_mask(attn_mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """attn_mask, expanded to the shape of the weights."""
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask is a {type(attn_mask).__name__}; it must be a tensor")
    if attn_mask.dtype is not torch.bool and not attn_mask.is_floating_point():
        raise TypeError(f"attn_mask is {attn_mask.dtype}; it must be bool or floating")
    try:
        return attn_mask.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"attn_mask has shape {tuple(attn_mask.shape)}; it must broadcast to {tuple(shape)}"
        ) from None


def masks_of_steps(
    attn_mask: Tensor | None, query: Tensor, state: ProjectedMemory
) -> list[Tensor | None]:
    """For each of the n queries its mask (B, 1, m), or None."""
    n = query.shape[1]
    if attn_mask is None:
        return [None] * n
    full = broadcast_mask(attn_mask, (query.shape[0], n, state.keys.shape[1]))
    return [full[:, i : i + 1] for i in range(n)]


def stacked(
    contexts: list[Tensor], weights: list[Tensor], state: ProjectedMemory, return_weights: bool
) -> Any:
    """The results of all steps, n along dimension 1; n may be 0."""
    batch, m, width = state.value.shape
    context = torch.stack(contexts, 1) if contexts else state.value.new_zeros(batch, 0, width)
    if not return_weights:
        return context
    return context, torch.stack(weights, 1) if weights else state.keys.new_zeros(batch, 0, m)


def check_step(module: Projections, query: Tensor, state: ProjectedMemory) -> None:
    """query (B, query_dim) of one step, with the batch of the state."""
    _check_shape("query", query, (state.keys.shape[0], module.query_dim), "(B, query_dim)")


def check_queries(module: Projections, query: Tensor, state: ProjectedMemory) -> None:
    """query (B, n, query_dim), with the batch of the memory."""
    n = query.shape[1] if isinstance(query, Tensor) and query.ndim > 1 else 0
    shape = (state.keys.shape[0], n, module.query_dim)
    _check_shape("query", query, shape, "(B, n, query_dim)")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Complain of a value that is none of the choices."""
    if not any(value is each or (isinstance(each, str) and value == each) for each in choices):
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...], symbols: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
    if x.shape != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {symbols} = {shape}")


def _check_lengths(key_lengths: Tensor, memory: Tensor) -> None:
    if not isinstance(key_lengths, Tensor) or key_lengths.dtype not in (torch.int32, torch.int64):
        found = key_lengths.dtype if isinstance(key_lengths, Tensor) else type(key_lengths).__name__
        raise TypeError(f"key_lengths is {found}; it must be an int32 or int64 tensor")
    batch, m, _ = memory.shape
    if key_lengths.shape != (batch,):
        raise ValueError(
            f"key_lengths has shape {tuple(key_lengths.shape)}; it must be (B,) = ({batch},)"
        )
    if not torch.compiler.is_compiling() and key_lengths.is_cpu and batch:
        low, high = (int(x) for x in key_lengths.aminmax())
        if low < 0 or high > m:
            raise ValueError(
                f"key_lengths lies in [{low}, {high}]; it must lie in [0, {m}], the number of keys"
            )
