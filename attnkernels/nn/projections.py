"""The parameters of every attention module: two projections and the vector that scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional import checks
from ..ops.codes import PrecisionName
from . import inputs


class Projections(nn.Module):
    """Compute q = W s (+ b), k = V h and the vector w of (E1), for one head or several.

    With ``normalize`` the score is g w / |w| . tanh(W s + V h + b): weight normalisation (Salimans
    and Kingma, 1602.07868), as in TensorFlow's BahdanauAttention and in GNMT. Each head's vector is
    divided by its own length.

    Args:
        query_dim: features of a query.
        key_dim: features of a key.
        hidden_dim: features of the sum that is scored, over all heads; a multiple of ``num_heads``.
        num_heads: heads of the score, each with hidden_dim // num_heads of the features.
        bias: give ``query_proj`` a bias. One bias is enough for the sum.
        normalize: also learn ``gain`` (initially 1 / sqrt(hidden_dim)) and ``bias`` (initially 0).
        device, dtype: device and dtype of the parameters, as in `torch.nn.Linear`.

    Attributes:
        query_proj: Linear(query_dim, hidden_dim).
        key_proj: Linear(key_dim, hidden_dim) without a bias.
        weight: (hidden_dim,), with heads (num_heads, hidden_dim // num_heads).
        gain: (1,), and bias: (hidden_dim,); None without ``normalize``.

    Raises:
        TypeError: ``bias`` or ``normalize`` is not a bool.
        ValueError: a size is not a positive int, or ``num_heads`` does not divide ``hidden_dim``.
    """

    # Of the classes that compute scores; those saved before there was a precision have this one.
    precision: PrecisionName = "exact"

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        hidden_dim: int,
        *,
        num_heads: int = 1,
        bias: bool = True,
        normalize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        query_dim, key_dim, hidden_dim, num_heads = inputs.sizes(
            query_dim=query_dim, key_dim=key_dim, hidden_dim=hidden_dim, num_heads=num_heads
        )
        checks.multiple("hidden_dim", hidden_dim, "num_heads", num_heads)
        checks.flags(bias=bias, normalize=normalize)
        self.query_dim, self.key_dim, self.hidden_dim = query_dim, key_dim, hidden_dim
        self.num_heads, self.normalize = num_heads, normalize
        self.query_proj = nn.Linear(query_dim, hidden_dim, bias=bias, device=device, dtype=dtype)
        self.key_proj = nn.Linear(key_dim, hidden_dim, bias=False, device=device, dtype=dtype)
        shape = (hidden_dim,) if num_heads == 1 else (num_heads, hidden_dim // num_heads)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.gain: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if normalize:
            self.gain = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.empty(hidden_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all parameters: Xavier's rule for the projections, `nn.Linear`'s for ``weight``."""
        for projection in (self.query_proj, self.key_proj):
            nn.init.xavier_uniform_(projection.weight)
        if self.query_proj.bias is not None:
            nn.init.zeros_(self.query_proj.bias)
        bound = self.weight.shape[-1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.gain is not None and self.bias is not None:
            nn.init.constant_(self.gain, self.hidden_dim**-0.5)
            nn.init.zeros_(self.bias)

    def project_query(self, query: Tensor) -> Tensor:
        """Return q of (E1): (..., n, query_dim) -> (..., n, d), with heads (..., H, n, d / H).

        d is hidden_dim.

        Raises:
            TypeError, ValueError: query is not such a tensor.
        """
        inputs.features("query", query, "(..., n, query_dim)", self.query_dim)
        return self._queries(query)

    def project_key(self, memory: Tensor) -> Tensor:
        """Return k of (E1): (..., m, key_dim) -> (..., m, d), with heads (..., H, m, d / H).

        d is hidden_dim.

        Raises:
            TypeError, ValueError: memory is not such a tensor.
        """
        inputs.features("memory", memory, "(..., m, key_dim)", self.key_dim)
        return self._keys(memory)

    def score_weight(self) -> Tensor:
        """Return w of (E1), of the shape of ``weight``; with ``normalize`` g w / |w|."""
        if self.gain is None:
            return self.weight
        return self.gain * self.weight / self.weight.norm(dim=-1, keepdim=True)

    def _queries(self, query: Tensor, one: bool = False) -> Tensor:
        """Run `project_query` on a query that is already checked; `one`: on (B, query_dim).

        One query per sequence is projected as a matrix, which takes a fifth less time than rows of
        one, and returned with n = 1.
        """
        projected = self.query_proj(query)
        if self.bias is not None:
            projected = projected + self.bias
        return split_heads(projected.unsqueeze(-2) if one else projected, self.num_heads)

    def _keys(self, memory: Tensor) -> Tensor:
        """Run `project_key` on a memory that is already checked."""
        return split_heads(self.key_proj(memory), self.num_heads)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        """Load parameters of shape (1,) from entries of shape () as well, which they once had."""
        for name, parameter in self._parameters.items():
            entry = state_dict.get(prefix + name)
            if parameter is not None and parameter.shape == (1,) and isinstance(entry, Tensor):
                state_dict[prefix + name] = entry.reshape(1) if entry.ndim == 0 else entry
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    def extra_repr(self) -> str:
        shown = inputs.shown_precision(self.precision)
        return f"num_heads={self.num_heads}, normalize={self.normalize}{shown}"


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return (..., n, H * d) as (..., H, n, d), a view; x itself if there is one head."""
    return x if num_heads == 1 else x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def merge_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return (..., H, n, d) as (..., n, H * d); x itself if there is one head."""
    return x if num_heads == 1 else x.transpose(-2, -3).flatten(-2)
