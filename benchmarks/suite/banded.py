"""The naive formula in a window, block by block: what a loop in PyTorch makes of it."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # queries at a time


def banded_attention(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, window: int
) -> Tensor:
    """Return the context (..., n, dv) of every query over the keys at most `window` away from it.

    Each block of queries meets the keys that any of them sees, in a tensor of
    (..., BLOCK, BLOCK + 2 window, d). Shapes are those of `naive_attention`.
    """
    n, m = query.shape[-2], key.shape[-2]
    contexts = []
    for i in range(0, n, BLOCK):
        rows, columns = slice(i, i + BLOCK), slice(max(0, i - window), i + BLOCK + window)
        x = query[..., rows, :].unsqueeze(-2) + key[..., columns, :].unsqueeze(-3)
        positions = torch.arange(n, device=query.device)[rows].unsqueeze(-1)
        apart = torch.arange(m, device=query.device)[columns] - positions
        scores = torch.where(apart.abs() <= window, torch.tanh(x) @ weight, float("-inf"))
        contexts.append(torch.softmax(scores, dim=-1) @ value[..., columns, :])
    return torch.cat(contexts, -2)
