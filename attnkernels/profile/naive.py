"""The formula as usually written, the baseline of every comparison here."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_attention(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Additive attention (Bahdanau et al., 1409.0473) through the [..., n, m, d] tensor of (E1).

    Shapes: query (..., n, d), key (..., m, d), value (..., m, dv), weight (d,); returns
    (..., n, dv). Any floating dtype, no masks, scale 1.
    """
    scores = torch.tanh(query.unsqueeze(-2) + key.unsqueeze(-3)) @ weight
    return torch.softmax(scores, dim=-1) @ value


def naive_bytes(pairs: int, width: int, itemsize: int, backward: bool) -> int:
    """Return the bytes that `naive_attention` needs for `pairs` = batch * n * m pairs of width d.

    The forward pass holds two tensors of (..., n, m, d) at once: the sum and its tanh. The backward
    pass holds three: the saved tanh, its gradient, and the gradient of the sum. The scores and the
    softmax are added to that.
    """
    tensors = 3 if backward else 2
    return pairs * itemsize * (tensors * width + 2)
