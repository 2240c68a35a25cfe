"""Pointers: a distribution over the positions of the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..functional import checks
from ..functional.attention import additive_scores
from ..ops.codes import PrecisionName
from . import inputs
from .projections import Projections


class PointerHead(Projections):
    """Log-probabilities over the positions of a memory (Vinyals et al., 1506.03134, equation 3).

        log p(j | i) = log softmax_j(scale * w . tanh(W s_i + V h_j + b))

    Args:
        query_dim, key_dim, hidden_dim, bias, normalize, device, dtype: as in `Projections`.
        scale: finite, multiplies the scores.
        precision, backend: as in `attnkernels.additive_scores`.

    Raises:
        TypeError, ValueError: as `Projections`; or ``scale``, ``precision`` or ``backend`` is
            wrong.
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
        precision: PrecisionName = "exact",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = query_dim, key_dim, hidden_dim
        super().__init__(*sizes, bias=bias, normalize=normalize, device=device, dtype=dtype)
        self.scale = checks.number("scale", scale)
        inputs.precision_name(precision)
        inputs.backend_name(backend)
        self.precision, self.backend = precision, backend

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        *,
        key_lengths: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the log-probabilities of the positions.

        Args:
            query: (B, n, query_dim), or (B, query_dim) for one query per sequence; of the dtype of
                the parameters.
            key: (B, m, key_dim), of the same dtype.
            key_lengths: (B,), int32 or int64, in [0, m]: positions at and beyond the length have
                -inf. The range is checked on a CPU only.
            attn_mask: of the dimensions of the result, any of which may be 1, or (m,); bool (False
                has -inf: for example a position that is already taken) or of query's dtype (added
                to the score; -inf stays -inf).

        Returns:
            (B, n, m), or (B, m) for one query per sequence, in query's dtype (under autocast, in
            that of `torch.log_softmax`). A row with nothing left is -inf throughout, with zero
            gradients. Select the finite entries before multiplying: 0 times -inf is NaN.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        key, _ = inputs.memory(self, "key", key, None, key_lengths)
        batch, m, _ = key.shape
        steps = inputs.query_or_queries(self, query, batch)
        one = not steps
        mask = inputs.mask(attn_mask, query, B=batch, **steps, m=m)
        scores = additive_scores(
            self._queries(query, one),
            self._keys(key),
            self.score_weight(),
            scale=self.scale,
            precision=self.precision,
            backend=self.backend,
        )
        allowed = None
        if key_lengths is not None:
            allowed = inputs.present(key_lengths, m).unsqueeze(-2)
        if mask is not None:
            mask = mask.unsqueeze(-2) if one and mask.ndim else mask
            if mask.is_floating_point():
                scores = scores + mask
                mask = mask != -torch.inf
            allowed = mask if allowed is None else allowed & mask
        if allowed is not None:  # finite: softmax of a row of -inf, and its gradient, are NaN
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        log_p = scores.log_softmax(-1)
        if allowed is not None:
            log_p = log_p.masked_fill(~allowed, -torch.inf)
        return log_p.squeeze(-2) if one else log_p

    if TYPE_CHECKING:
        __call__ = forward
