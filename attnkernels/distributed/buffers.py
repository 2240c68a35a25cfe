"""Memory of pieces that come and go, used again and again.

An allocator that is asked for them anew between the blocks' own tensors leaves holes, which cost a
rank as much memory as the pieces.
"""

from __future__ import annotations

from itertools import cycle
from math import prod

import torch
from torch import Tensor


class Buffers:
    """As many pieces of a tensor as are in use at a time."""

    def __init__(self, like: Tensor, rows: int, dtype: torch.dtype, number: int) -> None:
        """Take the greatest number of rows of a piece of `like`, (*L, rows, features)."""
        self.lead, self.features = like.shape[:-2], like.shape[-1]
        size = self._size(rows)
        self.turns = cycle([like.new_empty(size, dtype=dtype) for _ in range(number)])

    def take(self, rows: int) -> Tensor:
        """Return a piece, whose memory is that of the piece taken `number` times before."""
        return next(self.turns)[: self._size(rows)].view(*self.lead, rows, self.features)

    def _size(self, rows: int) -> int:
        return prod(self.lead) * rows * self.features
