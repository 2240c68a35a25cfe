"""Attention pooling: one learned query for every sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional.attention import Result, additive_attention
from .attention import check_dropout, check_memory, per_head
from .projections import check_features, check_sizes, split_heads, zero_padding


class AttentionPooling(nn.Module):
    """A sequence as the sum of its rows, weighted by attention of a learned query.

        a_j = softmax_j(w . tanh(V h_j + query))    pooled = sum_j a_j h_j

    The word and sentence attention of hierarchical attention networks (Yang et al., 2016, equations
    5 to 7: their b is ``query``, their u_w is ``weight``). With heads the hidden features and the
    rows are split as in multi-head attention.

    Args:
        key_dim: features of a row, a multiple of ``num_heads``.
        hidden_dim: features of the score over all heads, a multiple of ``num_heads``.
        num_heads: of the score.
        dropout: in [0, 1], the probability that a weight is dropped; in training only.
        backend: as in `additive_attention`.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size or ``dropout`` is not one of these; the message says which.
    """

    def __init__(
        self,
        key_dim: int,
        hidden_dim: int,
        *,
        num_heads: int = 1,
        dropout: float = 0.0,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(key_dim=key_dim, hidden_dim=hidden_dim, num_heads=num_heads)
        for name, size in (("key_dim", key_dim), ("hidden_dim", hidden_dim)):
            if size % num_heads:
                raise ValueError(f"{name} is {size}; it must be a multiple of num_heads")
        check_dropout(dropout)
        self.key_dim, self.num_heads = key_dim, num_heads
        self.dropout, self.backend = dropout, backend
        self.key_proj = nn.Linear(key_dim, hidden_dim, bias=False, device=device, dtype=dtype)
        self.query = nn.Parameter(torch.empty(hidden_dim, device=device, dtype=dtype))
        shape = (hidden_dim,) if num_heads == 1 else (num_heads, hidden_dim // num_heads)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        nn.init.xavier_uniform_(self.key_proj.weight)
        nn.init.zeros_(self.query)
        bound = self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(
        self, key: Tensor, *, key_lengths: Tensor | None = None, return_weights: bool = False
    ) -> Result:
        """Pooled rows (B, key_dim) of key (B, m, key_dim).

        Args:
            key: (B, m, key_dim).
            key_lengths: (B,), int32 or int64: how many rows of each sequence take part. A sequence
                of length 0 is pooled to zeros.
            return_weights: also return the weights (B, m), with heads (B, H, m), after dropout.

        Raises:
            TypeError, ValueError: an argument does not fit; the message says which and how.
        """
        check_features("key", key, self.key_dim, "key_dim")
        check_memory("key", key, key, self.num_heads)
        lengths = per_head(key_lengths, key.shape[0], self.num_heads)
        key = zero_padding(key, key_lengths)
        result = additive_attention(
            split_heads(self.query.unsqueeze(0), self.num_heads),
            split_heads(self.key_proj(key), self.num_heads),
            split_heads(key, self.num_heads),
            self.weight,
            key_lengths=lengths,
            dropout_p=self.dropout if self.training else 0.0,
            return_weights=return_weights,
            backend=self.backend,
        )
        context, weights = result if return_weights else (result, None)
        pooled = context.flatten(1)
        return pooled if weights is None else (pooled, weights.squeeze(-2))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, dropout={self.dropout}"
