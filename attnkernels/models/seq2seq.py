"""An encoder and a decoder connected by one vector of fixed size.

Cho et al. (1406.1078), section 2.2 and appendix A.1; Bahdanau et al. (1409.0473) call the model
RNNencdec. Optionally the source is reversed, which Sutskever et al. (1409.3215, section 3.3) found
to help, or read twice, as in Zaremba and Sutskever (1410.4615, section 3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from ..functional import checks
from ..nn import AdditiveAttention, AttentionRNN, inputs
from .common import Translator, lengths_on_cpu, tokens


class Seq2Seq(Translator):
    """A model of target tokens y given source tokens x, through the vector c.

        h_i = GRU(h_{i-1}, e(x_i))    c = tanh(V h_n)                      the encoder
        s_0 = tanh(V' c)              s_t = GRU(s_{t-1}, [e(y_{t-1}); c])  the decoder
        p(y_t) = softmax(G maxout(O [s_t; c]))                             the readout

    Cho et al. also give the readout e(y_{t-1}); here it reaches the readout through s_t alone.

    Args:
        source_size, target_size, embedding_dim, dropout, begin, end: as in `RNNsearch`.
        hidden_dim: features of h, c and s (1000).
        maxout_dim: maxout units (500).
        reverse_source: read the source from its last token to its first.
        repeat_source: read the source twice, one copy after the other.
        backend: as in `attnkernels.additive_attention`; of `greedy_search` and `beam_search` only.

    Raises:
        TypeError, ValueError: as `RNNsearch`; or a flag is not a bool.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        *,
        embedding_dim: int = 620,
        hidden_dim: int = 1000,
        maxout_dim: int = 500,
        dropout: float = 0.0,
        begin: int = 1,
        end: int = 2,
        reverse_source: bool = False,
        repeat_source: bool = False,
        backend: str | None = None,
    ) -> None:
        embedding_dim, hidden_dim, maxout_dim = inputs.sizes(
            embedding_dim=embedding_dim, hidden_dim=hidden_dim, maxout_dim=maxout_dim
        )
        super().__init__((source_size, target_size), embedding_dim, dropout, begin, end)
        checks.flags(reverse_source=reverse_source, repeat_source=repeat_source)
        self.reverse_source, self.repeat_source = reverse_source, repeat_source
        self.encoder = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.vector = nn.Linear(hidden_dim, hidden_dim)
        self.initial = nn.Linear(hidden_dim, hidden_dim)
        self.decoder = nn.GRU(embedding_dim + hidden_dim, hidden_dim, batch_first=True)
        self.readout = self._maxout(2 * hidden_dim, maxout_dim)
        # For the searches: attention to a memory of one row returns that row, whatever its score,
        # so its parameters have nothing to learn.
        attention = AdditiveAttention(hidden_dim, hidden_dim, 1, backend=backend)
        self.stepper = AttentionRNN(_OneStep(self.decoder), attention.requires_grad_(False))

    def forward(self, source: Tensor, source_lengths: Tensor, target: Tensor) -> Tensor:
        """Return the logits of every target token, given those before it.

        Args:
            source: (B, m), int64.
            source_lengths: (B,), int64, each in [1, m]; tokens beyond are not read.
            target: (B, T), int64, without ``begin``: ends with ``end``, then padding.

        Returns:
            (B, T, target_size): row t has the logits of ``target[:, t]``. Rows of padding are
            meaningless; `torch.nn.functional.cross_entropy` skips them by ``ignore_index=0``.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        c = self.sentence_embeddings(source, source_lengths)
        embedded = self._shifted(target, source.shape[0])
        contexts = c.unsqueeze(1).expand(-1, embedded.shape[1], -1)
        state = torch.tanh(self.initial(c)).unsqueeze(0)
        outputs, _ = self.decoder(torch.cat([embedded, contexts], -1), state)
        return self.readout(outputs, contexts)

    if TYPE_CHECKING:
        __call__ = forward

    def sentence_embeddings(self, source: Tensor, source_lengths: Tensor) -> Tensor:
        """Return c (B, hidden_dim), all that the decoder knows of a source as in `forward`."""
        tokens("source", source, self.source_embedding.num_embeddings)
        lengths = lengths_on_cpu("source_lengths", source_lengths, *source.shape)
        source, lengths = self._arranged(source, lengths)
        embedded = self._embedded(source)
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        _, h = self.encoder(packed)
        return torch.tanh(self.vector(h[-1]))

    def _searched(self, source: Tensor, source_lengths: Tensor) -> dict[str, Any]:
        c = self.sentence_embeddings(source, source_lengths)
        return {
            "rnn": self.stepper,
            "memory": c.unsqueeze(1),
            "state": torch.tanh(self.initial(c)),
            "embed": self.target_embedding,
            "readout": self.readout,
            "start": self.begin,
            "eos": self.end,
        }

    def _arranged(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the source in the order in which it is read, and its lengths, on the CPU."""
        if not (self.reverse_source or self.repeat_source):
            return source, lengths
        times = 2 if self.repeat_source else 1
        length = lengths.to(source.device).unsqueeze(1)
        position = torch.arange(times * source.shape[1], device=source.device)
        at = position % length
        if self.reverse_source:
            at = length - 1 - at
        return source.gather(1, at).masked_fill(position >= times * length, 0), times * lengths


class _OneStep(nn.Module):
    """A cell (inputs, state) -> state with the parameters of a GRU."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        return self.gru(inputs.unsqueeze(1), state.unsqueeze(0))[1].squeeze(0)
