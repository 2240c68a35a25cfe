"""An encoder and a decoder with nothing between them but one vector of fixed size.

Cho et al. (1406.1078), section 2.2 and appendix A.1, whose model Bahdanau et al. (1409.0473) call
RNNencdec; the source reversed as Sutskever et al. (1409.3215, section 3.3) found to help, or read
twice as Zaremba and Sutskever (1410.4615, section 3.3) did.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from ..nn import AdditiveAttention, AttentionRNN, Decoded, beam_search, greedy_search


class Searching(nn.Module):
    """The two searches of a model that says in `_searched` what they go through."""

    def greedy_search(self, source: Tensor, source_lengths: Tensor, *, max_length: int) -> Decoded:
        """`attnkernels.nn.greedy_search`: call `eval` before. The source as in `forward`."""
        return greedy_search(**self._searched(source, source_lengths), max_length=max_length)

    def beam_search(
        self,
        source: Tensor,
        source_lengths: Tensor,
        *,
        max_length: int,
        beams: int = 10,
        length_penalty: float = 0.0,
    ) -> Decoded:
        """`attnkernels.nn.beam_search`: call `eval` before. The source as in `forward`."""
        return beam_search(
            **self._searched(source, source_lengths),
            max_length=max_length,
            beams=beams,
            length_penalty=length_penalty,
        )

    def _searched(self, source: Tensor, source_lengths: Tensor) -> dict[str, Any]:
        """The arguments of `attnkernels.nn.beam_search` that are this model's."""
        raise NotImplementedError


class Seq2Seq(Searching):
    """Source tokens x to target tokens y through the vector c.

        h_i = GRU(h_{i-1}, e(x_i))    c = tanh(V h_n)                      the encoder
        s_0 = tanh(V' c)              s_t = GRU(s_{t-1}, [e(y_{t-1}); c])  the decoder
        p(y_t) = softmax(G maxout(O [s_t; c]))                             the readout

    Cho et al. give the readout e(y_{t-1}) as well; here it has it through s_t alone.

    Args:
        source_size, target_size: how many tokens there are; 0 is padding in both.
        embedding_dim: features of e (Bahdanau et al.: 620).
        hidden_dim: features of h, c and s (1000).
        maxout_dim: maxout units (500).
        dropout: in [0, 1), of the embeddings and of the maxout units, in training.
        begin, end: the target tokens y_0 and the one that ends a sequence.
        reverse_source: read the source from its last token to its first.
        repeat_source: read the source twice, one copy after the other.
        backend: as in `attnkernels.additive_attention`; of `greedy_search` and `beam_search` only.

    Raises:
        ValueError: begin or end is no target token other than padding, or dropout is not in [0, 1).
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
        super().__init__()
        check_target(target_size, begin, end, dropout)
        self.begin, self.end = begin, end
        self.reverse_source, self.repeat_source = reverse_source, repeat_source
        self.source_embedding = nn.Embedding(source_size, embedding_dim, padding_idx=0)
        self.target_embedding = nn.Embedding(target_size, embedding_dim, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        self.vector = nn.Linear(hidden_dim, hidden_dim)
        self.initial = nn.Linear(hidden_dim, hidden_dim)
        self.decoder = nn.GRU(embedding_dim + hidden_dim, hidden_dim, batch_first=True)
        self.readout = MaxoutReadout(2 * hidden_dim, maxout_dim, target_size, dropout)
        # What the searches step through: attention to a memory of one row is that row, whatever its
        # score, so that this one has nothing to learn.
        attention = AdditiveAttention(hidden_dim, hidden_dim, 1, backend=backend)
        self.stepper = AttentionRNN(_OneStep(self.decoder), attention.requires_grad_(False))

    def forward(self, source: Tensor, source_lengths: Tensor, target: Tensor) -> Tensor:
        """Logits of every target token, given those before it.

        Args:
            source: (B, m), int64.
            source_lengths: (B,), int64, each in [1, m]; what lies beyond is not read.
            target: (B, T), int64, without ``begin``: ends with ``end``, then padding.

        Returns:
            (B, T, target_size): row t is of the distribution of ``target[:, t]``. Rows of padding
            mean nothing; `torch.nn.functional.cross_entropy` ignores them by ``ignore_index=0``.

        Raises:
            TypeError, ValueError: an argument does not fit; the message says which and how.
        """
        c = self.sentence_embeddings(source, source_lengths)
        inputs = shifted(target, self.begin, self.target_embedding.num_embeddings, source)
        embedded = self.dropout(self.target_embedding(inputs))
        contexts = c.unsqueeze(1).expand(-1, inputs.shape[1], -1)
        state = torch.tanh(self.initial(c)).unsqueeze(0)
        outputs, _ = self.decoder(torch.cat([embedded, contexts], -1), state)
        return self.readout(outputs, contexts)

    def sentence_embeddings(self, source: Tensor, source_lengths: Tensor) -> Tensor:
        """c (B, hidden_dim): all that the decoder knows of a source. Arguments as in `forward`."""
        check_tokens("source", source, self.source_embedding.num_embeddings)
        lengths = check_lengths(source, source_lengths)
        source, lengths = self._arranged(source, lengths)
        embedded = self.dropout(self.source_embedding(source))
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
        """The source in the order in which it is read, and the lengths of that, on the CPU."""
        if not (self.reverse_source or self.repeat_source):
            return source, lengths
        times = 2 if self.repeat_source else 1
        length = lengths.to(source.device).unsqueeze(1)
        position = torch.arange(times * source.shape[1], device=source.device)
        at = position % length
        if self.reverse_source:
            at = length - 1 - at
        return source.gather(1, at).masked_fill(position >= times * length, 0), times * lengths


class MaxoutReadout(nn.Module):
    """Logits of a decoder's output and context by a deep output with one maxout layer.

    t_j = max(u_{2j-1}, u_{2j}), u = O [s; c], logits = G t (1409.0473, appendix A.2.2); which two
    of u belong together is a matter of the order of the rows of O.

    Args:
        input_dim: features of s and c together.
        maxout_dim: maxout units.
        target_size: logits.
        dropout: of the maxout units, in training.
    """

    def __init__(self, input_dim: int, maxout_dim: int, target_size: int, dropout: float) -> None:
        super().__init__()
        self.pieces = nn.Linear(input_dim, 2 * maxout_dim)
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(maxout_dim, target_size)

    def forward(self, output: Tensor, context: Tensor) -> Tensor:
        """Logits (..., target_size) of s (..., hidden) and c (..., context)."""
        u = self.pieces(torch.cat([output, context], -1))
        return self.logits(self.dropout(torch.maximum(*u.chunk(2, -1))))


class _OneStep(nn.Module):
    """A GRU as a cell, (inputs, state) -> state, with the parameters of the GRU."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        return self.gru(inputs.unsqueeze(1), state.unsqueeze(0))[1].squeeze(0)


def shifted(target: Tensor, begin: int, size: int, source: Tensor) -> Tensor:
    """What the decoder reads to predict target (B, T): ``begin``, then all but the last token."""
    check_tokens("target", target, size)
    if len(target) != len(source):
        raise ValueError(
            f"target has a batch of {len(target)}; the source has one of {len(source)}"
        )
    return torch.cat([torch.full_like(target[:, :1], begin), target[:, :-1]], 1)


def check_target(size: int, begin: int, end: int, dropout: float) -> None:
    """Complain of begin or end that is no token, and of dropout that is no probability."""
    for name, token in (("begin", begin), ("end", end)):
        if not 0 < token < size:
            raise ValueError(f"{name} is {token}; it must be a token in [1, {size})")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")


def check_tokens(name: str, tokens: Tensor, size: int) -> None:
    """Complain of what is no int64 tensor (B, n) of tokens in [0, size), n at least 1."""
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
        given = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"{name} is {given}; it must be an int64 tensor of tokens")
    if tokens.ndim != 2 or not tokens.numel():
        raise ValueError(f"{name} has shape {tuple(tokens.shape)}; it must be (B, n), not empty")
    low, high = tokens.min().item(), tokens.max().item()
    if low < 0 or high >= size:
        raise ValueError(f"{name} has tokens from {low} to {high}; they must be in [0, {size})")


def check_lengths(source: Tensor, lengths: Tensor) -> Tensor:
    """The lengths (B,) on the CPU, where packing wants them; complain of those that do not fit."""
    batch, longest = source.shape
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64:
        given = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"source_lengths is {given}; it must be an int64 tensor")
    if lengths.shape != (batch,):
        raise ValueError(
            f"source_lengths has shape {tuple(lengths.shape)}; it must be (B,), ({batch},)"
        )
    lengths = lengths.cpu()
    low, high = lengths.min().item(), lengths.max().item()
    if low < 1 or high > longest:
        raise ValueError(
            f"source_lengths go from {low} to {high}; they must be in [1, {longest}], the source's"
        )
    return lengths
