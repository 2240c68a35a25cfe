"""SpeechBrain: ContentBasedAttention and LocationAwareAttention."""

from __future__ import annotations

from typing import Any

import torch
from helpers.interop_load import (
    CONV,
    H,
    K,
    LoadCase,
    layers,
    located,
    location_shapes,
    shapes,
    stepwise,
)
from helpers.interop_swap import A, D, E, Reorder, SwapCase, padding, weigh
from torch import Tensor, nn


class ContentBasedAttention(nn.Module):
    def __init__(self, enc_dim, dec_dim, attn_dim, output_dim, scaling=1.0) -> None:
        super().__init__()
        self.mlp_enc = nn.Linear(enc_dim, attn_dim)
        self.mlp_dec = nn.Linear(dec_dim, attn_dim)
        self.mlp_attn = nn.Linear(attn_dim, 1, bias=False)
        self.mlp_out = nn.Linear(enc_dim, output_dim)
        self.scaling = scaling
        self.reset()

    def reset(self) -> None:
        self.enc_len = self.precomputed_enc_h = self.mask = None

    def added(self) -> Tensor | float:
        return 0.0

    def start(self, enc_len: Tensor) -> None:
        pass

    def finish(self, weights: Tensor) -> None:
        pass

    def forward(self, enc_states, enc_len, dec_states):
        if self.precomputed_enc_h is None:
            self.precomputed_enc_h = self.mlp_enc(enc_states)
            self.mask = (~padding(enc_len, enc_states.shape[1])).to(enc_len.dtype)
            self.start(enc_len)
        hidden = self.precomputed_enc_h + self.mlp_dec(dec_states).unsqueeze(1) + self.added()
        scores = self.mlp_attn(hidden.tanh()).squeeze(-1) * self.scaling
        context, weights = weigh(scores, self.mask == 0, enc_states)
        self.finish(weights)
        return self.mlp_out(context), weights


class LocationAwareAttention(ContentBasedAttention):
    def __init__(self, enc_dim, dec_dim, attn_dim, output_dim, channels, kernel, scaling=1.0):
        super().__init__(enc_dim, dec_dim, attn_dim, output_dim, scaling)
        size = 2 * kernel + 1
        self.conv_loc = nn.Conv1d(1, channels, size, padding=kernel, bias=False)
        self.mlp_loc = nn.Linear(channels, attn_dim)

    def reset(self) -> None:
        super().reset()
        self.prev_attn = None

    def start(self, enc_len: Tensor) -> None:
        self.prev_attn = self.mask * (1 / enc_len.float()).unsqueeze(1)

    def finish(self, weights: Tensor) -> None:
        self.prev_attn = weights.detach()

    def added(self) -> Tensor:
        return self.mlp_loc(self.conv_loc(self.prev_attn.unsqueeze(1)).mT)

    def forward(self, enc_states, enc_len, dec_states):
        return super().forward(enc_states, enc_len, dec_states)


def calls(module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder) -> list[Any]:
    module.reset()
    found, lengths = [], torch.tensor(lengths, dtype=memory.dtype)
    for state in states:
        found.append(module(memory, lengths, state))
        reorder(module)
    return found


LAYERS = ("mlp_dec", "mlp_enc", "mlp_attn")
OUT = {"mlp_out.weight": (5, K), "mlp_out.bias": (5,)}
ADDED = located("conv_loc", "mlp_loc", lambda past: past[-1].detach())
LOADS = {
    "speechbrain": LoadCase(
        "speechbrain",
        {"scale": 1.5},
        shapes(*LAYERS, "mlp_dec mlp_enc") | OUT,
        layers(*LAYERS, scale=1.5),
        left=("mlp_out.weight", "mlp_out.bias"),
    ),
    "speechbrain-location": LoadCase(
        "speechbrain-location",
        CONV | {"initial": "uniform", "detach_weights": True},
        shapes(*LAYERS, "mlp_dec mlp_enc")
        | OUT
        | location_shapes("conv_loc", "mlp_loc")
        | {"mlp_loc.bias": (H,)},
        stepwise(*LAYERS, ADDED, uniform=True, scale=1.0),
        left=("mlp_out.weight", "mlp_out.bias"),
    ),
}

SWAPS = {
    "speechbrain": SwapCase(
        lambda: ContentBasedAttention(E, D, A, 4, scaling=1.5),
        calls,
        "SpeechBrain, Content",
        ("precomputed_enc_h", "mask"),
    ),
    "speechbrain-location": SwapCase(
        lambda: LocationAwareAttention(E, D, A, 4, 3, 2),
        calls,
        "SpeechBrain, Location",
        ("precomputed_enc_h", "mask", "prev_attn"),
    ),
}
