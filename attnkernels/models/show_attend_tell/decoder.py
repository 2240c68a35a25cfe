"""The decoder of Show, Attend and Tell: an LSTM with soft or hard attention (1502.03044, 3.1.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn import (
    AdditiveAttention,
    AttentionRNN,
    DecoderState,
    HardAttention,
    HardChoice,
    PreparedMemory,
    ProjectedMemory,
)
from ...nn.reading import Alignment
from ...nn.rnn import Attend
from ...ops.codes import PrecisionName


class CaptionDecoder(AttentionRNN):
    """The LSTM of equations 1 to 7: each step attends with its previous state, then reads.

    The outputs (B, T, embed_dim) are the sums that the deep output layer maps to words (equation
    7), the contexts are the gated ones (section 4.2.1). The first state, (h, c), must be given.
    `forward` uses soft attention, `choose` hard attention, and `step`, for searches, the kind that
    the decoder is made for.

    Args:
        embed_dim, annotation_dim, hidden_dim, attention_dim: sizes of a word's embedding (m in the
            paper), of an annotation (D), of the LSTM (n) and of the score.
        hard: also create a `HardAttention`, which shares the parameters of the soft one.
        defer_gradients: as in `AttentionRNN`.
        precision, backend: of the attention.
    """

    def __init__(
        self,
        embed_dim: int,
        annotation_dim: int,
        hidden_dim: int,
        attention_dim: int,
        *,
        hard: bool,
        defer_gradients: bool,
        precision: PrecisionName,
        backend: str | None,
    ) -> None:
        sizes = hidden_dim, annotation_dim, attention_dim
        soft = AdditiveAttention(*sizes, precision=precision, backend=backend)
        cell = nn.LSTMCell(embed_dim + annotation_dim, hidden_dim)
        super().__init__(cell, soft, defer_gradients=defer_gradients)
        self.gate = nn.Linear(hidden_dim, 1)  # f_beta
        self.from_hidden = nn.Linear(hidden_dim, embed_dim)  # L_h
        self.from_context = nn.Linear(annotation_dim, embed_dim, bias=False)  # L_z
        self.hard: HardAttention | None = None
        if hard:
            self.hard = HardAttention(*sizes, precision=precision, backend=backend)
            self.hard.query_proj, self.hard.key_proj = soft.query_proj, soft.key_proj
            self.hard.weight = soft.weight

    def _initial(self, prepared: PreparedMemory, attend: Attend, state: Any) -> DecoderState:
        """Return the first state without attending; the first step attends itself."""
        self._output("the output in state", state, prepared.batch)
        zeros = prepared.value.new_zeros(prepared.batch, prepared.value_dim)
        return DecoderState(state, zeros)

    def _step(
        self, cell: Any, inputs: Tensor, attend: Attend, last: DecoderState, checked: bool = False
    ) -> tuple[Tensor, Tensor, Any, DecoderState]:
        before = last.cell[0]
        context, weights = attend(before)  # equations 4 to 6
        context = self.gate(before).sigmoid() * context
        now = cell(torch.cat([inputs, context], -1), last.cell)  # equations 1 to 3
        output = inputs + self.from_hidden(now[0]) + self.from_context(context)
        return output, context, weights, DecoderState(now, context)

    def _attend(
        self,
        prepared: PreparedMemory,
        steps: int | None,
        return_weights: bool,
        alignment: Alignment | None = None,
    ) -> Attend:
        """Return the attention of `step` where steps is None, otherwise that of `forward`.

        The weights of hard attention are 1 where it looks.
        """
        if self.hard is None or steps is not None:
            return super()._attend(prepared, steps, return_weights, alignment)
        hard, projected = self.hard, _projected(prepared)
        places = projected.keys.shape[1]

        def attend(hidden: Tensor) -> tuple[Tensor, Tensor | None]:
            context, choice, _ = hard.read(hidden, projected)
            if not return_weights:
                return context, None
            return context, F.one_hot(choice.positions, places).to(context)

        return attend

    def choose(
        self, words: Tensor, annotations: Tensor, state: tuple[Tensor, ...], expected: Tensor
    ) -> tuple[Tensor, Tensor, HardChoice]:
        """Run `forward` with hard attention (equations 8 and 9).

        Args:
            words: (B, T, embed_dim), the embeddings.
            annotations: (B, L, D).
            state: the first (h, c), (B, hidden_dim) each.
            expected: (B,), bool: True for images that get the expected context, that of soft
                attention.

        Returns:
            The outputs (B, T, embed_dim), the weights (B, T, L) and the choices, whose
            log-probability is 0 for images with expected contexts.
        """
        prepared = self.prepared(annotations)
        assert self.hard is not None
        soft, hard = self._attend(prepared, words.shape[1], True), self.hard
        projected = _projected(prepared)
        choices: list[HardChoice] = []

        def attend(hidden: Tensor) -> tuple[Tensor, Tensor | None]:
            mean, weights = soft(hidden)
            _, choice, _ = hard.read(hidden, projected)
            choices.append(choice._replace(log_prob=choice.log_prob.masked_fill(expected, 0.0)))
            return torch.where(expected.unsqueeze(-1), mean, choice.context), weights

        now = self._initial(prepared, attend, state)
        found = []
        for word in words.unbind(1):
            output, _, weights, now = self._step(self.cell, word, attend, now)
            found.append((output, weights))
        outputs, alphas = (torch.stack(x, 1) for x in zip(*found, strict=True))
        return outputs, alphas, HardChoice(*(torch.stack(x, 1) for x in zip(*choices, strict=True)))


def _projected(prepared: PreparedMemory) -> ProjectedMemory:
    """Return the prepared memory of the soft attention for the hard one, which shares it."""
    memory = prepared.memory
    return ProjectedMemory(memory.key, memory.value, memory.weight, memory.key_lengths)
