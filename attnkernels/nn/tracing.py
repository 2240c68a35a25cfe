"""The alignments of a search, which say where each token was read, and tokens copied by them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import checks


class Trace:
    """The weights of every step of a search, and the beams that each step continued.

    A search keeps the weights of all beams and their origins; only the beams that survive are
    followed back, at the end.

    Args:
        wanted: False keeps nothing.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self._weights: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, weights: Tensor) -> None:
        """Keep the weights (R, [H,] m) of a step."""
        if self.wanted:
            self._weights.append(weights)

    def select(self, rows: Tensor) -> None:
        """Keep the beams (R,) that continue after the step, by their rows before it."""
        if self.wanted:
            self._rows.append(rows)

    def alignments(self, lengths: Tensor) -> Tensor | None:
        """Return the weights of the beams that are left, zeros beyond their lengths (B, beams)."""
        if not self.wanted:
            return None
        now: Tensor | None = None
        found: list[Tensor] = []
        for t in reversed(range(len(self._weights))):
            if self._rows:
                now = self._rows[t] if now is None else self._rows[t][now]
            weights = self._weights[t]
            found.append(weights if now is None else weights.index_select(0, now))
        every = torch.stack(found[::-1], -2).unflatten(0, tuple(lengths.shape))
        before_end = torch.arange(len(found), device=lengths.device) < lengths.unsqueeze(-1)
        if every.ndim > 4:
            before_end = before_end.unsqueeze(2)
        return torch.where(before_end.unsqueeze(-1), every, 0.0)


def as_weights(weights: Any, prepared: Any) -> Tensor:
    """Return weights (R, [H,] m), or a choice of positions as weights of 1."""
    if isinstance(weights, Tensor):
        return weights
    positions, m = weights.positions, prepared.value.shape[-2]
    chosen = F.one_hot(positions.clamp(min=0), max(m, 1))[..., :m]
    return (chosen * (positions >= 0).unsqueeze(-1)).to(weights.context)


def copy_unknown(tokens: Tensor, alignments: Tensor, source: Tensor, unknown: int) -> Tensor:
    """Return the tokens with each ``unknown`` replaced by the source token it was read from.

    A decoder that knows few words names the others after the word of the source that its attention
    looks at most (Luong et al., 1410.8206; Jean et al., 1412.2007).

    Args:
        tokens: (B, L) or (B, beams, L), int64, as a search returns them.
        alignments: (B, L, m) or (B, beams, L, m), with heads (B, H, L, m) or
            (B, beams, H, L, m), which are averaged.
        source: (B, m), int64: the source tokens, by the numbers that the result shall have, such as
            those beyond the target's vocabulary.
        unknown: the token to replace.

    Returns:
        Tokens of the shape of ``tokens``. Where the weights are all 0, ``unknown`` stays.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes do not fit.
    """
    checks.integers("tokens", tokens)
    checks.tensor("alignments", alignments, dtype=checks.FLOATING)
    checks.integers("source", source)
    unknown = checks.integer("unknown", unknown)
    if alignments.ndim == tokens.ndim + 2:
        alignments = alignments.mean(tokens.ndim - 1)
    m = alignments.shape[-1] if alignments.ndim else 0
    if tokens.ndim not in (2, 3) or tuple(alignments.shape) != (*tokens.shape, m):
        raise ValueError(
            "alignments must be (B, [beams,] [H,] L, m) for tokens (B, [beams,] L) = "
            f"{tuple(tokens.shape)}, got shape {tuple(alignments.shape)}"
        )
    if tuple(source.shape) != (tokens.shape[0], m):
        raise ValueError(
            f"source must be (B, m) = {(tokens.shape[0], m)}, got shape {tuple(source.shape)}"
        )
    if not m:
        return tokens.clone()
    best = alignments.max(-1)
    rows = source.view(source.shape[0], *[1] * (tokens.ndim - 1), m).expand(*tokens.shape, m)
    copied = rows.gather(-1, best.indices.unsqueeze(-1)).squeeze(-1).to(tokens.dtype)
    return torch.where((tokens == unknown) & (best.values > 0), copied, tokens)
