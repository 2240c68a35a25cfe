"""AllenNLP's AdditiveAttention, which returns weights or scores and no context."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..functional.attention import additive_scores
from ..nn import AdditiveAttention
from .core.attend import beyond, once
from .core.convention import COLUMN, PLAIN, TRANSPOSED, Convention, Entry
from .core.live import Draw, Fused, Live, M, Results, trial_lengths

CONVENTIONS = {
    "allennlp": Convention(
        "AllenNLP, AdditiveAttention",
        AdditiveAttention,
        (
            Entry("query_proj.weight", ("_w_matrix",), TRANSPOSED),
            Entry("key_proj.weight", ("_u_matrix",), TRANSPOSED),
            Entry("weight", ("_v_vector",), COLUMN),
        ),
        PLAIN,
    )
}


class Additive(Fused):
    """AdditiveAttention: its scores. Its own ``forward`` makes the weights from them."""

    def _forward_internal(self, vector: Tensor, matrix: Tensor) -> Tensor:
        query = vector.matmul(self._w_matrix).unsqueeze(1)
        keys = once(matrix, vector).matmul(self._u_matrix)
        return additive_scores(query, keys, self._v_vector.squeeze(1)).squeeze(1)


def _trial(module: Any, draw: Draw) -> Results:
    matrix = draw(2, M, module._u_matrix.shape[0])
    mask = ~beyond(trial_lengths(matrix), M)
    return module.forward(draw(2, module._w_matrix.shape[0]), matrix, mask)


_ARGUMENTS = ("vector", "matrix", "matrix_mask")
LIVE = (Live("allennlp", ("AdditiveAttention",), _ARGUMENTS, Additive, _trial),)
