"""OpenNMT-py: GlobalAttention("mlp")."""

from __future__ import annotations

from typing import Any

import torch
from helpers.interop_load import K, LoadCase, Q, layers, shapes
from helpers.interop_swap import E, Reorder, SwapCase, padding
from torch import Tensor, nn


class GlobalAttention(nn.Module):
    def __init__(self, dim, coverage=False, attn_type="mlp", attn_func="softmax") -> None:
        super().__init__()
        self.dim, self.attn_type, self.attn_func = dim, attn_type, attn_func
        self.linear_context = nn.Linear(dim, dim, bias=False)
        self.linear_query = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, 1, bias=False)
        self.linear_out = nn.Linear(2 * dim, dim)
        if coverage:
            self.linear_cover = nn.Linear(1, dim, bias=False)

    def forward(self, src, enc_out, src_len=None, coverage=None):
        queries = src.unsqueeze(1) if src.dim() == 2 else src
        if coverage is not None:
            enc_out = (enc_out + self.linear_cover(coverage.unsqueeze(-1))).tanh()
        q, k = self.linear_query(queries), self.linear_context(enc_out)
        scores = self.v((q.unsqueeze(2) + k.unsqueeze(1)).tanh()).squeeze(-1)
        if src_len is not None:
            padded = padding(src_len, enc_out.shape[1]).unsqueeze(1)
            scores = scores.masked_fill(padded, -torch.inf)
        weights = scores.softmax(-1)
        attended = self.linear_out(torch.cat([weights @ enc_out, queries], 2))
        one = src.dim() == 2
        return (attended.squeeze(1), weights.squeeze(1)) if one else (attended, weights)


def calls(module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder) -> list[Any]:
    lengths = torch.tensor(lengths)
    found = [module(state, memory, src_len=x) for state in states for x in (lengths, None)]
    return [*found, module(states.transpose(0, 1).contiguous(), memory, lengths)]


OUT = {"linear_out.weight": (Q, Q + K), "linear_out.bias": (Q,)}
LOADS = {
    "opennmt": LoadCase(
        "opennmt",
        {},
        shapes("linear_query", "linear_context", "v", "linear_query") | OUT,
        layers("linear_query", "linear_context", "v"),
        left=tuple(OUT),
    ),
}

SWAPS = {
    "opennmt": SwapCase(lambda: GlobalAttention(E), calls, "GlobalAttention", sizes=(E, E)),
}
