"""Tacotron 2: NVIDIA's and torchaudio's Attention."""

from __future__ import annotations

from typing import Any

import torch
from helpers.interop_load import (
    CHANNELS,
    CONV,
    WIDTH,
    Formula,
    H,
    K,
    LoadCase,
    Q,
    Shapes,
    State,
    layer,
    stepwise,
)
from helpers.interop_swap import A, D, E, Reorder, SwapCase, padding, weigh
from torch import Tensor, nn
from torch.nn import functional


class Wrapped(nn.Module):
    """A layer inside another module, as NVIDIA has it."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.add_module(name, layer)

    def forward(self, x):
        (layer,) = self.children()
        return layer(x)


class LocationLayer(nn.Module):
    def __init__(self, conv: nn.Module, dense: nn.Module) -> None:
        super().__init__()
        self.location_conv, self.location_dense = conv, dense

    def forward(self, weights):
        return self.location_dense(self.location_conv(weights).mT)


class _Attention(nn.Module):
    """torchaudio's."""

    def __init__(self, rnn_dim, embedding_dim, attention_dim, filters, kernel) -> None:
        super().__init__()

        def linear(ins: int, outs: int) -> nn.Module:
            return self.linear(nn.Linear(ins, outs, bias=False))

        self.query_layer = linear(rnn_dim, attention_dim)
        self.memory_layer = linear(embedding_dim, attention_dim)
        self.v = linear(attention_dim, 1)
        conv = nn.Conv1d(2, filters, kernel, padding=kernel // 2, bias=False)
        self.location_layer = LocationLayer(self.conv(conv), linear(filters, attention_dim))
        self.score_mask_value = -float("inf")

    def linear(self, layer: nn.Module) -> nn.Module:
        return layer

    def conv(self, layer: nn.Module) -> nn.Module:
        return layer

    def forward(
        self, attention_hidden_state, memory, processed_memory, attention_weights_cat, mask
    ):
        hidden = self.query_layer(attention_hidden_state.unsqueeze(1)) + processed_memory
        hidden = (hidden + self.location_layer(attention_weights_cat)).tanh()
        return weigh(self.v(hidden).squeeze(-1), mask, memory)


class Attention(_Attention):
    """NVIDIA's."""

    def linear(self, layer: nn.Module) -> nn.Module:
        return Wrapped("linear_layer", layer)

    def conv(self, layer: nn.Module) -> nn.Module:
        return Wrapped("conv", layer)


def calls(module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder) -> list[Any]:
    found, processed = [], module.memory_layer(memory)
    padded = padding(lengths, memory.shape[1])
    weights = total = memory.new_zeros(memory.shape[:2])
    for i, state in enumerate(states):
        both = torch.stack([weights, total], 1)
        masked = i > 0 or not isinstance(module, Attention)  # only NVIDIA's does without a mask
        found.append(module(state, memory, processed, both, padded if masked else None))
        weights = found[-1][1]
        total = total + weights
    return found


def formula(conv: str, linear: str) -> Formula:
    def added(s: State, past: list[Tensor]) -> Tensor:
        seen = torch.stack([past[-1], torch.stack(past).sum(0)], 1)
        f = s[f"location_layer.location_conv{conv}.weight"]
        seen = functional.conv1d(seen, f, padding=WIDTH // 2)
        return layer(s, f"location_layer.location_dense{linear}", seen.mT)

    names = f"query_layer{linear}", f"memory_layer{linear}", f"v{linear}"
    return stepwise(*names, added, uniform=False, scale=1.0)


def entries(conv: str, linear: str) -> Shapes:
    return {
        f"query_layer{linear}.weight": (H, Q),
        f"memory_layer{linear}.weight": (H, K),
        f"v{linear}.weight": (1, H),
        f"location_layer.location_conv{conv}.weight": (CHANNELS, 2, WIDTH),
        f"location_layer.location_dense{linear}.weight": (H, CHANNELS),
    }


LOADS = {
    "tacotron2, NVIDIA": LoadCase(
        "tacotron2",
        CONV | {"cumulative": "both", "bias": False},
        entries(".conv", ".linear_layer"),
        formula(".conv", ".linear_layer"),
    ),
    "tacotron2, torchaudio": LoadCase(
        "tacotron2", CONV | {"cumulative": "both"}, entries("", ""), formula("", "")
    ),
}

SWAPS = {
    "tacotron2, NVIDIA": SwapCase(lambda: Attention(D, E, A, 3, 5), calls, "Tacotron 2"),
    "tacotron2, torchaudio": SwapCase(lambda: _Attention(D, E, A, 3, 5), calls, "Tacotron 2"),
}
