"""Keras: AdditiveAttention and Attention("concat"), whose checkpoints have only what scores."""

from __future__ import annotations

import torch
from helpers.interop_load import H, LoadCase, State, softmax
from torch import Tensor


def formula(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    return softmax((s["scale"] * torch.tanh(queries.unsqueeze(2) + keys.unsqueeze(1))).sum(-1))


def concat(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    hidden = torch.tanh(queries.unsqueeze(2) + keys.unsqueeze(1))
    return softmax(s["concat_score_weight"] * hidden.sum(-1))


LOADS = {
    "keras": LoadCase("keras", {"bias": False}, {"scale": (H,)}, formula, sizes=(H, H, H)),
    "keras-concat": LoadCase(
        "keras-concat", {"bias": False}, {"concat_score_weight": ()}, concat, sizes=(H, H, H)
    ),
}
