"""AllenNLP: AdditiveAttention."""

from __future__ import annotations

from typing import Any

import torch
from helpers.interop_load import H, K, LoadCase, Q, State, softmax
from helpers.interop_swap import D, E, Reorder, SwapCase, padding
from torch import Tensor, nn


class AdditiveAttention(nn.Module):
    def __init__(self, vector_dim, matrix_dim, normalize=True) -> None:
        super().__init__()
        self._normalize = normalize
        self._w_matrix = nn.Parameter(torch.randn(vector_dim, vector_dim))
        self._u_matrix = nn.Parameter(torch.randn(matrix_dim, vector_dim))
        self._v_vector = nn.Parameter(torch.randn(vector_dim, 1))

    def forward(self, vector, matrix, matrix_mask=None):
        scores = self._forward_internal(vector, matrix)
        if not self._normalize:
            return scores
        part = 1.0 if matrix_mask is None else matrix_mask.to(scores.dtype)
        weights = (scores * part).softmax(-1) * part
        return weights / (weights.sum(-1, keepdim=True) + 1e-13)

    def _forward_internal(self, vector, matrix):
        hidden = (vector @ self._w_matrix).unsqueeze(1) + matrix @ self._u_matrix
        return (hidden.tanh() @ self._v_vector).squeeze(2)


def calls(module: Any, memory: Tensor, states: Tensor, lengths: Any, reorder: Reorder) -> list[Any]:
    mask = ~padding(lengths, memory.shape[1])
    return [module(state, memory, x) for state in states for x in (mask, None)]


def formula(s: State, queries: Tensor, keys: Tensor) -> Tensor:
    hidden = (queries @ s["_w_matrix"]).unsqueeze(2) + (keys @ s["_u_matrix"]).unsqueeze(1)
    return softmax((torch.tanh(hidden) @ s["_v_vector"]).squeeze(-1))


LOADS = {
    "allennlp": LoadCase(
        "allennlp",
        {},
        {"_w_matrix": (Q, H), "_u_matrix": (K, H), "_v_vector": (H, 1)},
        formula,
    ),
}

SWAPS = {
    "allennlp": SwapCase(lambda: AdditiveAttention(D, E), calls, "AllenNLP"),
    "allennlp, scores": SwapCase(
        lambda: AdditiveAttention(D, E, normalize=False), calls, "AllenNLP"
    ),
}
