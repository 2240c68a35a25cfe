"""A checkpoint of another library, as a test loads it: names, shapes and the library's formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

B, N, M, Q, K, H, CHANNELS, WIDTH = 3, 4, 13, 6, 10, 8, 3, 5
VALUE = 3  # features of a head's values, if the library projects them
LENGTHS = torch.tensor([M, 1, 7])
CONV: dict[str, Any] = {"channels": CHANNELS, "kernel_size": WIDTH, "cumulative": False}

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
# (entries, queries (B, N, Q), keys (B, M, K)) -> weights (B, N, M), with heads (B, heads, N, M)
Formula = Callable[[State, Tensor, Tensor], Tensor]
# (entries, weights (B, M) of every earlier step) -> the term added to the keys, (B, M, H)
Added = Callable[[State, list[Tensor]], Tensor]


class LoadCase(NamedTuple):
    """A checkpoint, the module that it is loaded into, and the formula of the weights.

    Attributes:
        convention: a key of `CONVENTIONS`.
        options: keyword arguments of the module.
        shapes: the entries of the checkpoint, the first of them the matrix of the query.
        formula: the library's weights, in plain PyTorch and by its own names.
        cancelled, left: the entries that the report must list as such.
        sizes: query_dim, key_dim and hidden_dim of the module.
        values: a function of the entries and the keys that returns the values, if the library
            attends to anything but the keys.
    """

    convention: str
    options: dict[str, Any]
    shapes: Shapes
    formula: Formula
    cancelled: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    sizes: tuple[int, int, int] = (Q, K, H)
    values: Callable[[State, Tensor], Tensor] | None = None


def softmax(scores: Tensor) -> Tensor:
    """Normalise over the keys within the lengths."""
    beyond = torch.arange(M) >= LENGTHS.view(B, *[1] * (scores.ndim - 1))
    return scores.masked_fill(beyond, -torch.inf).softmax(-1)


def layer(s: State, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))


def layers(query: str, key: str, score: str, f: Any = torch.tanh, scale: float = 1.0) -> Formula:
    """Return the formula of three layers, with the biases that the entries have."""

    def weights(s: State, queries: Tensor, keys: Tensor) -> Tensor:
        hidden = f(layer(s, query, queries).unsqueeze(2) + layer(s, key, keys).unsqueeze(1))
        return softmax(scale * layer(s, score, hidden).squeeze(-1))

    return weights


def normalised(query: str, key: str, v: str, g: str, b: str, dense: bool) -> Formula:
    """Return g v / |v| . tanh(query + key + b); with ``dense`` the kernels are (in, out)."""

    def weights(s: State, queries: Tensor, keys: Tensor) -> Tensor:
        w_q, w_k = (s[name] if dense else s[name].mT for name in (query, key))
        hidden = (queries @ w_q).unsqueeze(2) + (keys @ w_k).unsqueeze(1)
        if g not in s:
            return softmax(torch.tanh(hidden) @ s[v])
        return softmax(torch.tanh(hidden + s[b]) @ (s[v] / s[v].norm() * s[g]))

    return weights


def stepwise(
    query: str, key: str, score: str, added: Added, *, uniform: bool, scale: float
) -> Formula:
    """Return the formula of steps whose keys have ``added`` added to them.

    The weights before the first step are 1 / length with ``uniform``, otherwise 0.
    """

    def weights(s: State, queries: Tensor, keys: Tensor) -> Tensor:
        first = (torch.arange(M) < LENGTHS[:, None]) / LENGTHS[:, None]
        past = [first.to(keys) if uniform else keys.new_zeros(B, M)]
        for i in range(N):
            hidden = layer(s, query, queries[:, i]).unsqueeze(1) + layer(s, key, keys)
            hidden = torch.tanh(hidden + added(s, past))
            past.append(softmax(scale * layer(s, score, hidden).squeeze(-1)))
        return torch.stack(past[1:], 1)

    return weights


def located(conv: str, proj: str, of: Callable[[list[Tensor]], Tensor]) -> Added:
    """Return the location features of `stepwise`, of a function of the weights of earlier steps."""

    def added(s: State, past: list[Tensor]) -> Tensor:
        seen = of(past).unsqueeze(1)
        seen = functional.conv1d(seen, s[f"{conv}.weight"], padding=WIDTH // 2)
        return layer(s, proj, seen.mT)

    return added


def location_shapes(conv: str, proj: str) -> Shapes:
    """Return the entries of the two layers of `located`, without a bias."""
    return {f"{conv}.weight": (CHANNELS, 1, WIDTH), f"{proj}.weight": (H, CHANNELS)}


def shapes(query: str, key: str, score: str, biases: str = "") -> Shapes:
    """Return the entries of three Linear layers. Those named in ``biases`` have a bias."""
    sizes: Shapes = {query: (H, Q), key: (H, K), score: (1, H)}
    made: Shapes = {f"{name}.weight": size for name, size in sizes.items()}
    return made | {f"{name}.bias": sizes[name][:1] for name in biases.split()}
