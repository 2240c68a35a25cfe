"""JoeyNMT: BahdanauAttention."""

from __future__ import annotations

from typing import Any

import torch
from helpers.interop_load import LoadCase, layers, shapes
from helpers.interop_swap import A, D, E, Reorder, SwapCase, padding
from torch import Tensor, nn


class BahdanauAttention(nn.Module):
    def __init__(self, hidden_size, key_size, query_size) -> None:
        super().__init__()
        self.key_layer = nn.Linear(key_size, hidden_size, bias=False)
        self.query_layer = nn.Linear(query_size, hidden_size, bias=False)
        self.energy_layer = nn.Linear(hidden_size, 1, bias=False)
        self.proj_keys = self.proj_query = None

    def compute_proj_keys(self, keys) -> None:
        self.proj_keys = self.key_layer(keys)

    def compute_proj_query(self, query) -> None:
        self.proj_query = self.query_layer(query)

    def _check_input_shapes_forward(self, query, mask, values) -> None:
        assert query.shape[0] == mask.shape[0] == values.shape[0]
        assert query.shape[1] == mask.shape[1] == 1

    def forward(self, query, mask, values):
        self._check_input_shapes_forward(query=query, mask=mask, values=values)
        assert self.proj_keys is not None, "there are no projected keys"
        self.compute_proj_query(query)
        scores = self.energy_layer((self.proj_query + self.proj_keys).tanh()).mT
        weights = scores.masked_fill(mask == 0, -torch.inf).softmax(-1)
        return weights @ values, weights


def calls(module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder) -> list[Any]:
    module.compute_proj_keys(memory)
    found, mask = [], ~padding(lengths, memory.shape[1]).unsqueeze(1)
    for state in states:
        found.append(module(query=state.unsqueeze(1), mask=mask, values=memory))
        reorder(module)
    return found


LOADS = {
    "joeynmt": LoadCase(
        "joeynmt",
        {"bias": False},
        shapes("query_layer", "key_layer", "energy_layer"),
        layers("query_layer", "key_layer", "energy_layer"),
    ),
}

SWAPS = {
    "joeynmt": SwapCase(lambda: BahdanauAttention(A, E, D), calls, "JoeyNMT", ("proj_keys",)),
}
