"""Hard attention: look at one position, drawn from the softmax, and learn by its score function."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..functional.attention import additive_scores
from .alignment import (
    ProjectedMemory,
    broadcast_mask,
    check_choice,
    check_queries,
    check_step,
    masked_scores,
    project_memory,
)
from .projections import Projections


class HardChoice(NamedTuple):
    """What `HardAttention` chose.

    Attributes:
        context: (B, n, value_dim), the value of the chosen position (or the expected one).
        positions: (B, n), int64, the chosen position; -1 where there is none to choose.
        log_prob: (B, n), the log-probability of the choice, in float32 (float64 for float64); 0
            where there is none to choose.
        entropy: (B, n), that of the distribution that it was chosen from.

    Results of one step have no n.
    """

    context: Tensor
    positions: Tensor
    log_prob: Tensor
    entropy: Tensor


class HardAttention(Projections):
    """The stochastic "hard" attention of Xu et al. (1502.03044), section 4.1.

    In training a position is drawn from softmax(scores). The draw has no gradient: the context has
    one for the value that was chosen, and what scores learns through `score_function_loss`, which
    ``log_prob`` goes into; ``entropy`` is there for their regulariser.

    Args:
        query_dim, key_dim, hidden_dim: features of query, memory and score.
        evaluation: in `eval` mode, "argmax" takes the likeliest position and its value, "expected"
            the likeliest position with the expected value as context (soft attention).
        bias, normalize, device, dtype: as `Projections`.
        scale, backend: as in `attnkernels.additive_scores`.

    Raises:
        ValueError: a size is not a positive int, or ``evaluation`` is neither.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        evaluation: str = "argmax",
        bias: bool = True,
        normalize: bool = False,
        scale: float = 1.0,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
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
        check_choice("evaluation", evaluation, ("argmax", "expected"))
        self.evaluation, self.scale, self.backend = evaluation, scale, backend

    def prepare(
        self, memory: Tensor, key_lengths: Tensor | None = None, value: Tensor | None = None
    ) -> ProjectedMemory:
        """What the steps of a decoder share; it stays as it is.

        Args:
            memory: (B, m, key_dim).
            key_lengths: (B,), int32 or int64, in [0, m]: positions at and beyond the length are
                never chosen. The range is checked on a CPU only.
            value: (B, m, value_dim); by default the memory.

        Raises:
            TypeError, ValueError: a shape, dtype or length does not fit.
        """
        return project_memory(self, memory, key_lengths, value)

    def step(
        self,
        query: Tensor,
        prepared: ProjectedMemory,
        *,
        attn_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> HardChoice:
        """Choose once: query (B, query_dim), attn_mask broadcastable to (B, m).

        Raises:
            TypeError, ValueError: a shape or dtype does not fit.
        """
        check_step(self, query, prepared)
        if attn_mask is not None:
            attn_mask = broadcast_mask(attn_mask, prepared.keys.shape[:2]).unsqueeze(1)
        chosen = self._choose(query.unsqueeze(1), prepared, attn_mask, generator)
        return HardChoice(*(x.squeeze(1) for x in chosen))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        key_lengths: Tensor | None = None,
        attn_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> HardChoice:
        """Choose a position for every query, each for itself.

        Args:
            query: (B, n, query_dim).
            key: (B, m, key_dim).
            value: (B, m, value_dim); by default the key.
            key_lengths: (B,), as in `prepare`.
            attn_mask: broadcastable to (B, n, m); bool (True takes part) or floating (added).
            generator: of the draw; torch's own by default.

        Returns:
            A `HardChoice`. A query with nothing to choose has context 0 and zero gradients.

        Raises:
            TypeError, ValueError: a shape or dtype does not fit.
        """
        prepared = self.prepare(key, key_lengths, value)
        check_queries(self, query, prepared)
        if attn_mask is not None:
            attn_mask = broadcast_mask(attn_mask, (*query.shape[:2], key.shape[1]))
        return self._choose(query, prepared, attn_mask, generator)

    def _choose(
        self,
        query: Tensor,
        prepared: ProjectedMemory,
        attn_mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> HardChoice:
        scores = additive_scores(
            self.project_query(query),
            prepared.keys,
            prepared.weight,
            scale=self.scale,
            backend=self.backend,
        )
        scores = masked_scores(scores, prepared.key_lengths, attn_mask)
        if not scores.shape[-1]:  # no column to draw; one that is masked changes nothing
            scores = scores.new_full((*scores.shape[:-1], 1), float("-inf"))
        # A row with nothing left is drawn from as if it were level, and then replaced.
        nothing = (scores == float("-inf")).all(-1)
        log_p = torch.where(nothing.unsqueeze(-1), 0.0, scores).log_softmax(-1)
        p = log_p.exp()
        if self.training:
            rows = p.detach().flatten(0, 1)
            drawn = torch.multinomial(rows, 1, generator=generator) if len(rows) else rows.long()
            positions = drawn[:, :1].reshape(nothing.shape)
        else:
            positions = log_p.argmax(-1)
        log_prob = log_p.gather(-1, positions.unsqueeze(-1)).squeeze(-1)
        entropy = -(p * log_p.masked_fill(log_p == float("-inf"), 0.0)).sum(-1)

        value = prepared.value
        if not value.shape[1]:
            context = value.new_zeros(*positions.shape, value.shape[-1])
        elif self.training or self.evaluation == "argmax":
            at = positions.unsqueeze(-1).expand(*positions.shape, value.shape[-1])
            context = value.gather(1, at)
        else:
            context = p.to(value.dtype) @ value
        context = torch.where(nothing.unsqueeze(-1), 0.0, context)
        return HardChoice(
            context,
            positions.masked_fill(nothing, -1),
            log_prob.masked_fill(nothing, 0.0),
            entropy.masked_fill(nothing, 0.0),
        )


def score_function_loss(
    log_prob: Tensor, reward: Tensor | float, baseline: Tensor | float = 0.0
) -> Tensor:
    """-(reward - baseline) * log_prob, whose gradient is that of -E[reward], without bias.

    The score-function estimator (REINFORCE; Xu et al., 1502.03044, equations 9 to 12). A baseline
    that does not depend on the choice leaves the expectation as it is and takes variance away.

    Args:
        log_prob: that of `HardChoice`, (B, n); for a reward of a whole sequence, summed over n.
        reward: what is to grow, broadcastable with log_prob. No gradient goes into it.
        baseline: the same; a moving average of the reward, say, or what a critic expects.

    Returns:
        What they broadcast to: not summed, for steps are summed and a batch averaged.

    Raises:
        TypeError: log_prob is not a tensor.
    """
    if not isinstance(log_prob, Tensor):
        raise TypeError(f"log_prob is a {type(log_prob).__name__}; it must be a tensor")
    advantage = torch.as_tensor(reward - baseline, device=log_prob.device).detach()
    return -advantage * log_prob
