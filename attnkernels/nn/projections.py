"""What every attention module learns: two projections and the vector that scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Projections(nn.Module):
    """q = W s (+ b), k = V h and the vector w of (E1), for one head or several.

    With ``normalize`` the score is g w / |w| . tanh(W s + V h + b): weight normalisation (Salimans
    and Kingma, 1602.07868) as TensorFlow's BahdanauAttention and GNMT have it, each head's vector
    by its own length.

    Args:
        query_dim: features of a query.
        key_dim: features of a key.
        hidden_dim: features of the sum that scores, over all heads; a multiple of ``num_heads``.
        num_heads: of the score, each with hidden_dim // num_heads of the features.
        bias: whether ``query_proj`` has a bias. One bias is enough for the sum.
        normalize: learn ``gain`` (from 1 / sqrt(hidden_dim)) and ``bias`` (from 0) as well.
        device, dtype: of the parameters, as in `torch.nn.Linear`.

    Attributes:
        query_proj: Linear(query_dim, hidden_dim).
        key_proj: Linear(key_dim, hidden_dim) without a bias.
        weight: (hidden_dim,), with heads (num_heads, hidden_dim // num_heads).
        gain: (), and bias: (hidden_dim,); None without ``normalize``.

    Raises:
        ValueError: a size is not a positive int, or ``num_heads`` does not divide ``hidden_dim``.
    """

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
        check_sizes(
            query_dim=query_dim, key_dim=key_dim, hidden_dim=hidden_dim, num_heads=num_heads
        )
        if hidden_dim % num_heads:
            raise ValueError(
                f"hidden_dim is {hidden_dim}; it must be a multiple of num_heads, {num_heads}"
            )
        self.query_dim, self.key_dim, self.hidden_dim = query_dim, key_dim, hidden_dim
        self.num_heads, self.normalize = num_heads, normalize
        self.query_proj = nn.Linear(query_dim, hidden_dim, bias=bias, device=device, dtype=dtype)
        self.key_proj = nn.Linear(key_dim, hidden_dim, bias=False, device=device, dtype=dtype)
        shape = (hidden_dim,) if num_heads == 1 else (num_heads, hidden_dim // num_heads)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.gain: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if normalize:
            self.gain = nn.Parameter(torch.empty((), device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.empty(hidden_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: Xavier's for the projections, `nn.Linear`'s for ``weight``."""
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
        """q of (E1): (..., n, query_dim) -> (..., n, hidden_dim), with heads (..., H, n, d / H)."""
        check_features("query", query, self.query_dim, "query_dim")
        projected = self.query_proj(query)
        if self.bias is not None:
            projected = projected + self.bias
        return split_heads(projected, self.num_heads)

    def project_key(self, memory: Tensor) -> Tensor:
        """k of (E1): (..., m, key_dim) -> (..., m, hidden_dim), with heads (..., H, m, d / H)."""
        check_features("memory", memory, self.key_dim, "key_dim")
        return split_heads(self.key_proj(memory), self.num_heads)

    def score_weight(self) -> Tensor:
        """w of (E1), of the shape of ``weight``; normalised where the module is."""
        if self.gain is None:
            return self.weight
        return self.gain * self.weight / self.weight.norm(dim=-1, keepdim=True)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, normalize={self.normalize}"


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(..., n, H * d) -> (..., H, n, d), a view; x itself where there is one head."""
    return x if num_heads == 1 else x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def merge_heads(x: Tensor, num_heads: int) -> Tensor:
    """(..., H, n, d) -> (..., n, H * d); x itself where there is one head."""
    return x if num_heads == 1 else x.transpose(-2, -3).flatten(-2)


def check_sizes(**sizes: int) -> None:
    """Complain of the first that is not a positive int."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} is {size!r}; it must be an int of at least 1")


def check_features(name: str, x: Tensor, features: int, wanted: str) -> None:
    """Complain of a tensor whose last dimension is not the one a module was made for."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
    if x.ndim < 2 or x.shape[-1] != features:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; its last dimension must be {wanted}, {features}"
        )


def present(key_lengths: Tensor, m: int) -> Tensor:
    """bool (B, m): the positions within the length."""
    return torch.arange(m, device=key_lengths.device) < key_lengths.unsqueeze(-1)


def zero_padding(x: Tensor, key_lengths: Tensor | None) -> Tensor:
    """x (B, m, features), with zeros beyond the lengths (B,) where there are any.

    What a padded row holds must not get into a projection: zero times NaN is NaN in the gradient of
    its matrix.
    """
    if key_lengths is None:
        return x
    return torch.where(present(key_lengths, x.shape[1]).unsqueeze(-1), x, 0.0)
