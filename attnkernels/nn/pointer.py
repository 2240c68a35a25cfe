"""Pointers: which position of the input comes next."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.attention import additive_scores
from .attention import check_memory, check_scoring, per_head, project_rows
from .projections import Projections, check_features, present, zero_padding


class PointerHead(Projections):
    """Log-probabilities over the positions of a memory (Vinyals et al., 1506.03134, equation 3).

        log p(j | i) = log softmax_j(scale * w . tanh(W s_i + V h_j + b))

    Args:
        query_dim, key_dim, hidden_dim, bias, normalize, device, dtype: of `Projections`.
        scale: finite, multiplies the scores.
        backend: as in `additive_scores`.

    Raises:
        ValueError: a size or ``scale`` is not one of these; the message says which.
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
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
        check_scoring("tanh", 0.2, scale)
        self.scale, self.backend = scale, backend

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        *,
        key_lengths: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities (B, n, m), or (B, m) for one query a sequence.

        Args:
            query: (B, n, query_dim), or (B, query_dim).
            key: (B, m, key_dim).
            key_lengths: (B,), int32 or int64: positions at and beyond the length have -inf.
            attn_mask: broadcastable to the result. bool: True may be pointed at, False has -inf (a
                position that was already taken, say). Floating: added to the scores.

        Returns:
            In query's dtype. A row with nothing left is -inf throughout, with zero gradients.

        Raises:
            TypeError, ValueError: an argument does not fit; the message says which and how.
        """
        check_features("key", key, self.key_dim, "key_dim")
        check_memory("key", key, key, 1)
        lengths = per_head(key_lengths, key.shape[0], 1)
        key = zero_padding(key, key_lengths)
        q = project_rows(self, query, key.shape[0])
        scores = additive_scores(
            q, self.project_key(key), self.score_weight(), scale=self.scale, backend=self.backend
        )
        allowed = None
        if lengths is not None:
            allowed = present(lengths, key.shape[1]).unsqueeze(-2)
        if attn_mask is not None:
            one = query.ndim == 2 and attn_mask.ndim
            mask = attn_mask.unsqueeze(-2) if one else attn_mask
            check_mask(mask, scores)
            if mask.is_floating_point():
                scores = scores + mask
                mask = mask != -torch.inf
            allowed = mask if allowed is None else allowed & mask
        if allowed is not None:  # not -inf: the softmax of a row of them, and its gradient, are NaN
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        log_p = scores.log_softmax(-1)
        if allowed is not None:
            log_p = log_p.masked_fill(~allowed, -torch.inf)
        return log_p.squeeze(-2) if query.ndim == 2 else log_p


def check_mask(mask: Tensor, scores: Tensor) -> None:
    """Complain of a mask that is not bool or floating, or does not broadcast to the scores."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"attn_mask is {mask.dtype}; it must be bool or floating")
    fits = mask.ndim <= scores.ndim and all(
        size in (1, wanted)
        for size, wanted in zip(reversed(mask.shape), reversed(scores.shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"attn_mask has shape {tuple(mask.shape)}; it must broadcast to {tuple(scores.shape)}"
        )
