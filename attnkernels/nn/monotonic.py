"""Monotonic attention: it only moves on, stops where it likes, and looks at where it stopped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional.attention import additive_scores
from .alignment import (
    AlignmentState,
    accumulated,
    broadcast_mask,
    check_choice,
    check_queries,
    check_step,
    masked_scores,
    masks_of_steps,
    project_memory,
)
from .projections import Projections


class MonotonicAttention(Projections):
    """Hard monotonic attention of Raffel et al. (1704.00784), trained in expectation.

        e_ij = g w / |w| . tanh(W s_i + V h_j + b) + r,    p_ij = sigmoid(e_ij + noise)

    At step i it starts where step i - 1 stopped, and at each position stops with probability p_ij
    or goes on. In training the weights are those expected (`expected_alignment`); in evaluation
    it stops at the first position with p_ij > 1/2 and looks there (algorithm 1). Whoever passes the
    end without stopping looks at nothing, then and ever after: weights and context are 0.

    Args:
        query_dim, key_dim, hidden_dim: features of query, memory and score.
        score_bias: the initial value of r. Negative, so that at first it goes on more often than
            it stops: about -log of how many positions it should pass.
        noise: the standard deviation of the normal noise in training, which makes p_ij learn to be
            close to 0 or 1.
        evaluation: in `eval` mode, "hard", or "expected" as in training but without noise.
        normalize: False for the plain score of Bahdanau et al. plus r.
        bias, device, dtype: as `Projections`.
        backend: as in `attnkernels.additive_scores`.

    Attributes:
        query_proj, key_proj, weight, gain, bias: W and b, V, w, g; as `Projections`.
        score_bias: r, ().

    Raises:
        ValueError: a size is not a positive int, ``noise`` is negative, or ``evaluation`` is
            neither.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        score_bias: float = -4.0,
        noise: float = 1.0,
        evaluation: str = "hard",
        bias: bool = False,
        normalize: bool = True,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_choice("evaluation", evaluation, ("hard", "expected"))
        if not noise >= 0:
            raise ValueError(f"noise is {noise!r}; it must be at least 0")
        super().__init__(
            query_dim,
            key_dim,
            hidden_dim,
            bias=bias,
            normalize=normalize,
            device=device,
            dtype=dtype,
        )
        self.initial_score_bias, self.noise = score_bias, noise
        self.evaluation, self.backend = evaluation, backend
        self.score_bias = nn.Parameter(torch.full((), score_bias, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Draw all parameters anew; ``score_bias`` takes its initial value."""
        super().reset_parameters()
        if hasattr(self, "score_bias"):  # not yet when the base calls this
            nn.init.constant_(self.score_bias, self.initial_score_bias)

    def prepare(
        self, memory: Tensor, key_lengths: Tensor | None = None, value: Tensor | None = None
    ) -> AlignmentState:
        """The state before the first step, which starts at position 0.

        Args:
            memory: (B, m, key_dim).
            key_lengths: (B,), int32 or int64, in [0, m]: it never stops at or beyond the length.
                The range is checked on a CPU only.
            value: (B, m, value_dim); by default the memory.

        Raises:
            TypeError, ValueError: a shape, dtype or length does not fit.
        """
        projected = project_memory(self, memory, key_lengths, value)
        batch, m, _ = projected.keys.shape
        first = torch.arange(m, device=memory.device) == 0
        previous = first.to(accumulated(memory.dtype)).expand(batch, m)
        return AlignmentState(**vars(projected), previous=previous, cumulative=None)

    def step(
        self,
        query: Tensor,
        state: AlignmentState,
        *,
        attn_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, AlignmentState]:
        """Attend once.

        Args:
            query: (B, query_dim).
            state: from `prepare`, or from the step before.
            attn_mask: broadcastable to (B, m); bool (where False it goes on) or floating (added
                to the energy).
            generator: of the noise; torch's own by default.

        Returns:
            context (B, value_dim), weights (B, m) and the state for the next step.

        Raises:
            TypeError, ValueError: a shape or dtype does not fit.
        """
        check_step(self, query, state)
        mask = None if attn_mask is None else broadcast_mask(attn_mask, state.previous.shape)
        mask = None if mask is None else mask.unsqueeze(1)
        state = self._align(self._energy(query.unsqueeze(1), state), state, mask, generator)
        weights = state.previous.to(state.value.dtype)
        return (weights.unsqueeze(1) @ state.value).squeeze(1), weights, state

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        key_lengths: Tensor | None = None,
        attn_mask: Tensor | None = None,
        return_weights: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """All queries, one step after another; their energies in one call.

        Args:
            query: (B, n, query_dim).
            key: (B, m, key_dim).
            value: (B, m, value_dim); by default the key.
            key_lengths: (B,), as in `prepare`.
            attn_mask: broadcastable to (B, n, m), as in `step`.
            return_weights: also return the weights.
            generator: of the noise; torch's own by default.

        Returns:
            context (B, n, value_dim), or a tuple of it and weights (B, n, m).

        Raises:
            TypeError, ValueError: a shape or dtype does not fit.
        """
        state = self.prepare(key, key_lengths, value)
        check_queries(self, query, state)
        masks = masks_of_steps(attn_mask, query, state)
        # `split` once, not a slice a step, whose gradients would each be as large as all energies.
        energy = self._energy(query, state).split(1, 1)
        alphas = []
        for row, mask in zip(energy, masks, strict=False):
            state = self._align(row, state, mask, generator)
            alphas.append(state.previous)
        weights = torch.stack(alphas, 1) if alphas else state.previous.unsqueeze(1)[:, :0]
        weights = weights.to(state.value.dtype)
        context = weights @ state.value
        return (context, weights) if return_weights else context

    def _energy(self, query: Tensor, state: AlignmentState) -> Tensor:
        scores = additive_scores(
            self.project_query(query), state.keys, state.weight, backend=self.backend
        )
        return scores.to(accumulated(scores.dtype)) + self.score_bias

    def _align(
        self,
        energy: Tensor,
        state: AlignmentState,
        attn_mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> AlignmentState:
        """The state after a step of energy (B, 1, m) and attn_mask (B, 1, m)."""
        if self.training and self.noise:
            energy = energy + self.noise * torch.randn(
                energy.shape, generator=generator, dtype=energy.dtype, device=energy.device
            )
        energy = masked_scores(energy, state.key_lengths, attn_mask).squeeze(1)
        if not self.training and self.evaluation == "hard":
            # Stopping for certain or not at all: the expectation is the choice.
            stops = torch.full_like(energy, float("inf"))
            energy = torch.where(energy > 0, stops, -stops)
        return replace(state, previous=expected_alignment(energy, state.previous))


def expected_alignment(energy: Tensor, previous: Tensor) -> Tensor:
    """The probability of stopping at each position: Raffel et al. (1704.00784), section 2.3.

        alpha_j = p_j q_j,    q_j = (1 - p_{j-1}) q_{j-1} + previous_j,    p = sigmoid(energy)

    Args:
        energy: (..., m), floating; -inf never stops, inf always does.
        previous: (..., m), the alignment of the step before; (1, 0, ..., 0) before the first.

    Returns:
        (..., m). It sums to at most that of previous: the rest goes past the end.

    The recurrence is solved in log2(m) rounds, in each of which every position takes in the window
    before its own: only products and sums of what is not negative, so that nothing cancels and an
    underflow is as good as the zero that it becomes. The closed form with cumulative products
    divides by them, and has to clip what underflows.

    Raises:
        ValueError: the shapes differ.
    """
    if energy.shape != previous.shape:
        raise ValueError(
            f"previous has shape {tuple(previous.shape)}; it must be that of energy, "
            f"{tuple(energy.shape)}"
        )
    go_on = torch.sigmoid(-energy)  # not 1 - p, which has no bits left where p is close to 1
    reached = previous
    carried = torch.cat([torch.zeros_like(go_on[..., :1]), go_on[..., :-1]], -1)
    window, m = 1, energy.shape[-1]
    while window < m:
        reached = torch.addcmul(reached, carried, F.pad(reached, (window, -window)))
        carried = carried * F.pad(carried, (window, -window))
        window *= 2
    return torch.sigmoid(energy) * reached
