"""GNMT: BahdanauAttention."""

from __future__ import annotations

from typing import Any

import torch
from helpers.interop_load import H, K, LoadCase, Q, normalised
from helpers.interop_swap import A, D, E, Reorder, SwapCase, padding
from torch import Tensor, nn


class BahdanauAttention(nn.Module):
    def __init__(self, query_size, key_size, units, normalize=False, batch_first=False) -> None:
        super().__init__()
        self.normalize, self.batch_first, self.num_units = normalize, batch_first, units
        self.linear_q = nn.Linear(query_size, units, bias=False)
        self.linear_k = nn.Linear(key_size, units, bias=False)
        self.linear_att = nn.Parameter(torch.randn(units))
        self.mask = None
        if normalize:
            self.normalize_scalar = nn.Parameter(torch.randn(1))
            self.normalize_bias = nn.Parameter(torch.randn(units))

    def set_mask(self, context_len, context) -> None:
        self.mask = padding(context_len, context.shape[1 if self.batch_first else 0])

    def forward(self, query, keys):
        one, time_first = query.dim() == 2, not self.batch_first
        keys = keys.transpose(0, 1) if time_first else keys
        query = query.unsqueeze(0 if time_first else 1) if one else query
        query = query.transpose(0, 1) if time_first else query
        hidden, v = self.linear_q(query).unsqueeze(2) + self.linear_k(keys).unsqueeze(1), None
        if self.normalize:
            hidden = hidden + self.normalize_bias
            v = self.normalize_scalar * self.linear_att / self.linear_att.square().sum().sqrt()
        scores = hidden.tanh() @ (self.linear_att if v is None else v)
        if self.mask is not None:
            scores = scores.masked_fill(self.mask.unsqueeze(1), -65504.0)
        weights = scores.softmax(-1)
        results = weights @ keys, weights
        if one:
            return tuple(x.squeeze(1) for x in results)
        return tuple(x.transpose(0, 1) for x in results) if time_first else results


def calls(module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder) -> list[Any]:
    if not module.batch_first:
        memory = memory.transpose(0, 1)
    module.mask = None
    found = [module(states[0], memory)]
    module.set_mask(torch.tensor(lengths), memory)
    found += [module(state, memory) for state in states]
    return [*found, module(states.transpose(0, 1) if module.batch_first else states, memory)]


NAMES = ("linear_q.weight", "linear_k.weight", "linear_att", "normalize_scalar", "normalize_bias")
LOADS = {
    "gnmt": LoadCase(
        "gnmt",
        {"normalize": True, "bias": False},
        dict(zip(NAMES, ((H, Q), (H, K), (H,), (1,), (H,)), strict=True)),
        normalised(*NAMES, dense=False),
    ),
    "gnmt, not normalised": LoadCase(
        "gnmt",
        {},
        dict(zip(NAMES[:3], ((H, Q), (H, K), (H,)), strict=True)),
        normalised(*NAMES, dense=False),
    ),
}

SWAPS = {
    "gnmt": SwapCase(lambda: BahdanauAttention(D, E, A), calls, "GNMT"),
    "gnmt, normalised, batch first": SwapCase(
        lambda: BahdanauAttention(D, E, A, normalize=True, batch_first=True), calls, "GNMT"
    ),
}
