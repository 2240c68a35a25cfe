"""The captioning tutorial: Attention."""

from __future__ import annotations

from typing import Any

import torch
from helpers.interop_load import LoadCase, layers, shapes
from helpers.interop_swap import A, D, E, Reorder, SwapCase, weigh
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, encoder_dim, decoder_dim, attention_dim) -> None:
        super().__init__()
        self.encoder_att = nn.Linear(encoder_dim, attention_dim)
        self.decoder_att = nn.Linear(decoder_dim, attention_dim)
        self.full_att = nn.Linear(attention_dim, 1)

    def forward(self, encoder_out, decoder_hidden):
        hidden = self.encoder_att(encoder_out) + self.decoder_att(decoder_hidden).unsqueeze(1)
        return weigh(self.full_att(hidden.relu()).squeeze(2), None, encoder_out, summed=True)


def calls(module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder) -> list[Any]:
    return [module(memory, state) for state in states]


LOADS = {
    "captioning": LoadCase(
        "captioning",
        {"activation": "relu"},
        shapes("decoder_att", "encoder_att", "full_att", "decoder_att encoder_att full_att"),
        layers("decoder_att", "encoder_att", "full_att", torch.relu),
        cancelled=("full_att.bias",),
    ),
}

SWAPS = {
    "captioning": SwapCase(lambda: Attention(E, D, A), calls, "captioning"),
}
