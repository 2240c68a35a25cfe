"""The plain formula in PyTorch: any device and dtype."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from ..ops import edge_formula, formula, plain
from ..ops.signature import EdgeOptions, Options, Values
from .base import Problem

NAME = "reference"
ops: SimpleNamespace | None = None


def attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, options: Options
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return (E1)-(E3); see `Backend.attention`."""
    return _with_tangents(
        lambda *_: formula.attention(query, key, value, weight, options),
        (query, key, value, weight, options.attn_mask),
    )


def scores(query: Tensor, key: Tensor, weight: Tensor, options: Options) -> Tensor:
    """Return (E1); see `Backend.scores`."""
    return _with_tangents(
        lambda *_: formula.scores(query, key, weight, options), (query, key, weight)
    )


def attention_over_edges(
    query: Tensor, key: Tensor, value: Tensor | None, weight: Tensor, options: EdgeOptions
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return context, weights and lse; see `Backend.attention_over_edges`."""
    return _with_tangents(
        lambda *_: edge_formula.attention(query, key, value, weight, options),
        (query, key, value, weight, options.edge_key, options.edge_bias),
    )


def why_not(problem: Problem) -> str | None:
    """Return None: PyTorch runs it everywhere."""
    return None


def pack_keys(key: Tensor, *, activation: str) -> Tensor | None:
    """Return None: the formula takes keys as they are."""
    return None


def _with_tangents(call: Callable[..., Any], inputs: Values) -> Any:
    """Return call(*inputs), whose tangents torch.compile would otherwise lose without a word."""
    found = plain.with_tangents(call, inputs) if forward_ad._current_level >= 0 else None
    return call(*inputs) if found is None else found
