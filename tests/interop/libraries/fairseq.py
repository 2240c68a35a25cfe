"""fairseq: MLPAttention of its Berard speech model, and LocationAttention."""

from __future__ import annotations

from typing import Any

import torch
from helpers.interop_load import CONV, LoadCase, layers, located, location_shapes, shapes, stepwise
from helpers.interop_swap import A, D, E, Reorder, SwapCase, padding, weigh
from torch import Tensor, nn


class MLPAttention(nn.Module):
    def __init__(self, decoder_hidden_state_dim, context_dim, attention_dim) -> None:
        super().__init__()
        self.context_dim, self.attention_dim = context_dim, attention_dim
        self.encoder_proj = nn.Linear(context_dim, attention_dim)
        self.decoder_proj = nn.Linear(decoder_hidden_state_dim, attention_dim, bias=False)
        self.to_scores = nn.Linear(attention_dim, 1, bias=False)

    def forward(self, decoder_state, source_hids, encoder_padding_mask):
        hidden = self.encoder_proj(source_hids) + self.decoder_proj(decoder_state).unsqueeze(0)
        padded = None if encoder_padding_mask is None else encoder_padding_mask.t()
        scores = self.to_scores(hidden.tanh()).squeeze(-1).t()
        context, weights = weigh(scores, padded, source_hids.transpose(0, 1), summed=True)
        return context, weights.t()


class LocationAttention(nn.Module):
    def __init__(
        self, attn_dim, encoder_dim, decoder_dim, states, conv_dim, kernel, scaling=2.0
    ) -> None:
        super().__init__()
        self.attn_dim, self.decoder_dim, self.scaling = attn_dim, decoder_dim, scaling
        self.proj_enc = nn.Linear(encoder_dim, attn_dim)
        self.proj_dec = nn.Linear(decoder_dim, attn_dim, bias=False)
        self.proj_attn = nn.Linear(conv_dim, attn_dim, bias=False)
        self.conv = nn.Conv1d(states, conv_dim, 2 * kernel + 1, padding=kernel, bias=False)
        self.proj_out = nn.Sequential(nn.Tanh(), nn.Linear(attn_dim, 1))
        self.proj_enc_out = None

    def clear_cache(self) -> None:
        self.proj_enc_out = None

    def forward(self, encoder_out, encoder_padding_mask, decoder_h, attn_state):
        if self.proj_enc_out is None:
            self.proj_enc_out = self.proj_enc(encoder_out)
        if decoder_h is None:
            decoder_h = encoder_out.new_zeros(encoder_out.shape[0], self.decoder_dim)
        hidden = self.proj_enc_out + self.proj_dec(decoder_h).unsqueeze(1)
        hidden = hidden + self.proj_attn(self.conv(attn_state).mT)
        scores = self.scaling * self.proj_out(hidden).squeeze(2)
        return weigh(scores, encoder_padding_mask, encoder_out, summed=True)


def mlp_calls(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    memory, padded = memory.transpose(0, 1), padding(lengths, memory.shape[1]).t()
    return [module(state, memory, x) for state in states for x in (padded, None)]


def location_calls(
    module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder
) -> list[Any]:
    module.clear_cache()
    found, padded = [], padding(lengths, memory.shape[1])
    seen = memory.new_zeros(memory.shape[0], 2, memory.shape[1])
    for state in (None, *states):
        found.append(module(memory, padded, state, seen))
        weights = found[-1][1]
        seen = reorder(module, torch.stack([weights, seen[:, 1] + weights], 1))
    return found


ADDED = located("conv", "proj_attn", lambda past: torch.stack(past).sum(0))
LOADS = {
    "fairseq": LoadCase(
        "fairseq",
        {},
        shapes("decoder_proj", "encoder_proj", "to_scores", "encoder_proj"),
        layers("decoder_proj", "encoder_proj", "to_scores"),
    ),
    "fairseq-location": LoadCase(
        "fairseq-location",
        CONV | {"cumulative": True, "scale": 2.0},
        shapes("proj_dec", "proj_enc", "proj_out.1", "proj_enc proj_out.1")
        | location_shapes("conv", "proj_attn"),
        stepwise("proj_dec", "proj_enc", "proj_out.1", ADDED, uniform=False, scale=2.0),
        cancelled=("proj_out.1.bias",),
    ),
}

SWAPS = {
    "fairseq": SwapCase(lambda: MLPAttention(D, E, A), mlp_calls, "MLPAttention"),
    "fairseq-location": SwapCase(
        lambda: LocationAttention(A, E, D, 2, 3, 2),
        location_calls,
        "fairseq, LocationAttention",
        ("proj_enc_out",),
    ),
}
