"""Attention pooling: one learned query for every sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor, nn

from ..functional import checks
from ..functional.attention import additive_attention
from ..functional.results import Pair
from ..ops.codes import PrecisionName
from . import inputs
from .attention import contexts_and_weights
from .projections import split_heads

if TYPE_CHECKING:
    from .overloads import (
        LengthsEitherWay,
        LengthsNoWeights,
        LengthsWithWeights,
        Unpack,
    )


class AttentionPooling(nn.Module):
    """Pool a sequence into the sum of its rows, weighted by the attention of a learned query.

        a_j = softmax_j(w . tanh(V h_j + query))    pooled = sum_j a_j h_j

    This is the word and sentence attention of hierarchical attention networks (Yang et al., 2016,
    equations 5 to 7: their b is ``query``, their u_w is ``weight``). With heads the hidden features
    and the rows are split as in multi-head attention.

    Args:
        key_dim: features of a row, a multiple of ``num_heads``.
        hidden_dim: features of the score over all heads, a multiple of ``num_heads``.
        num_heads: heads of the score.
        dropout: in [0, 1], the probability that a weight is dropped; in training only.
        precision, backend: as in `additive_attention`. A sequence has one query, which GPUs score
            exactly.
        device, dtype: device and dtype of the parameters.

    Raises:
        TypeError: ``dropout`` is not a number.
        ValueError: a size, ``dropout``, ``precision`` or ``backend`` is out of range.
    """

    precision: PrecisionName = "exact"  # of modules that were saved before there was one

    def __init__(
        self,
        key_dim: int,
        hidden_dim: int,
        *,
        num_heads: int = 1,
        dropout: float = 0.0,
        precision: PrecisionName = "exact",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        key_dim, hidden_dim, num_heads = inputs.sizes(
            key_dim=key_dim, hidden_dim=hidden_dim, num_heads=num_heads
        )
        checks.multiple("key_dim", key_dim, "num_heads", num_heads)
        checks.multiple("hidden_dim", hidden_dim, "num_heads", num_heads)
        self.dropout = checks.number("dropout", dropout, 0, 1)
        inputs.precision_name(precision)
        inputs.backend_name(backend)
        self.key_dim, self.num_heads = key_dim, num_heads
        self.precision, self.backend = precision, backend
        self.key_proj = nn.Linear(key_dim, hidden_dim, bias=False, device=device, dtype=dtype)
        self.query = nn.Parameter(torch.empty(hidden_dim, device=device, dtype=dtype))
        shape = (hidden_dim,) if num_heads == 1 else (num_heads, hidden_dim // num_heads)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all parameters."""
        nn.init.xavier_uniform_(self.key_proj.weight)
        nn.init.zeros_(self.query)
        bound = self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    @overload
    def forward(self, key: Tensor, **options: Unpack[LengthsNoWeights]) -> Tensor: ...
    @overload
    def forward(self, key: Tensor, **options: Unpack[LengthsWithWeights]) -> Pair: ...
    @overload
    def forward(self, key: Tensor, **options: Unpack[LengthsEitherWay]) -> Tensor | Pair: ...
    def forward(
        self, key: Tensor, *, key_lengths: Tensor | None = None, return_weights: bool = False
    ) -> Tensor | Pair:
        """Pool the rows of each sequence.

        Args:
            key: (B, m, key_dim), of the dtype of the parameters.
            key_lengths: (B,), int32 or int64, in [0, m]: how many rows of each sequence take part.
                A sequence of length 0 is pooled to zeros. The range is checked on a CPU only.
            return_weights: also return the weights, after dropout.

        Returns:
            (B, key_dim); with ``return_weights`` a tuple of it and the weights (B, m), with heads
            (B, H, m).

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        key, _ = inputs.memory(self, "key", key, None, key_lengths, range_later=True)
        lengths = key_lengths
        if lengths is not None and self.num_heads > 1:
            lengths = lengths.unsqueeze(-1)
        result = additive_attention(
            split_heads(self.query.unsqueeze(0), self.num_heads),
            split_heads(self.key_proj(key), self.num_heads),
            split_heads(key, self.num_heads),
            self.weight,
            key_lengths=lengths,
            dropout_p=self.dropout if self.training else 0.0,
            return_weights=return_weights,
            precision=self.precision,
            backend=self.backend,
        )
        context, weights = contexts_and_weights(result)
        pooled = context.flatten(1)
        return pooled if weights is None else (pooled, weights.squeeze(-2))

    def extra_repr(self) -> str:
        shown = inputs.shown_precision(self.precision)
        return f"num_heads={self.num_heads}, dropout={self.dropout}{shown}"

    if TYPE_CHECKING:
        __call__ = forward
