"""Keras: AdditiveAttention, whose checkpoint has only the scoring vector."""

from __future__ import annotations

import torch
from helpers.interop_load import H, LoadCase, State, softmax
from torch import Tensor


def formula(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    return softmax((s["scale"] * torch.tanh(queries.unsqueeze(2) + keys.unsqueeze(1))).sum(-1))


LOADS = {
    "keras": LoadCase("keras", {"bias": False}, {"scale": (H,)}, formula, sizes=(H, H, H)),
}
