"""Pointer networks: the output is a sequence of positions of the input.

Vinyals, Fortunato and Jaitly, "Pointer Networks" (1506.03134). An output vocabulary that grows with
the input needs no embedding and no readout: attention's distribution over the input is the output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..nn import Decoded, PointerHead, beam_search, greedy_search
from ..nn.projections import check_features, check_sizes
from .seq2seq import check_lengths, check_tokens

SYMBOL = 0  # as an input it begins, as an output it ends; positions are counted from 1


class Points(NamedTuple):
    """A source as the decoder reads it: its positions from 1, before them the symbol.

    Attributes:
        source: (B, m + 1, features).
        key: (B, m + 1, hidden_dim).
        key_lengths: (B,), the symbol included.
        state: h and c of the encoder after the last vector, (1, B, hidden_dim) each.
    """

    source: Tensor
    key: Tensor
    key_lengths: Tensor
    state: tuple[Tensor, Tensor]

    @property
    def batch(self) -> int:
        return len(self.key)

    @property
    def device(self) -> torch.device:
        return self.key.device


class PointerState(NamedTuple):
    """What a step hands to the next: h and c (R, hidden_dim), and which positions are free."""

    h: Tensor
    c: Tensor
    free: Tensor  # (R, m + 1), bool

    def index_select(self, index: Tensor) -> PointerState:
        """The rows `index`."""
        return PointerState(*(x.index_select(0, index) for x in self))


class PointerNetwork(nn.Module):
    """An LSTM reads vectors P_1 ... P_n, a second one points at them (section 2.3; figure 1b).

        e_j = encoder(P_1 ... P_j)        d_i = decoder(d_{i-1}, P_{C_{i-1}}), from the last e
        u_ij = v . tanh(W_1 e_j + W_2 d_i)    p(C_i | C_1 ... C_{i-1}, P) = softmax_j(u_ij)

    P_0 is the symbol that begins an output and e_0 that which ends it; both are learned. What was
    pointed at goes into the decoder, but no context does: u is all that attention is for.

    Args:
        features: of a vector P_j, 2 for points of a plane.
        hidden_dim: of e, d and the score (in the paper 256 or 512).
        distinct: never point twice at a position, in training and in searches. The paper does so
            for tours only, in the search (section 4.4): set this attribute after training. The
            symbol is always free.
        backend: as in `attnkernels.additive_scores`.

    Raises:
        ValueError: a size is not a positive int.
    """

    def __init__(
        self,
        features: int,
        *,
        hidden_dim: int = 256,
        distinct: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(features=features, hidden_dim=hidden_dim)
        self.features, self.distinct = features, distinct
        self.encoder = nn.LSTM(features, hidden_dim, batch_first=True)
        self.decoder = nn.LSTM(features, hidden_dim, batch_first=True)
        self.head = PointerHead(hidden_dim, hidden_dim, hidden_dim, backend=backend)
        self.begin = nn.Parameter(torch.empty(features).uniform_(-0.08, 0.08))  # section 4.1
        self.end = nn.Parameter(torch.empty(hidden_dim).uniform_(-0.08, 0.08))

    def forward(self, source: Tensor, source_lengths: Tensor, target: Tensor) -> Tensor:
        """Log-probabilities of every position, given those before it (equation 3).

        Args:
            source: (B, m, features), in the parameters' dtype: the vectors P.
            source_lengths: (B,), int64, each in [1, m]; what lies beyond is not read.
            target: (B, T), int64: positions from 1, then 0 for the end, and as padding.

        Returns:
            (B, T, m + 1): row t is of the distribution of ``target[:, t]``, the end first. What
            cannot be pointed at has -inf. Rows of padding mean nothing.

        Raises:
            TypeError, ValueError: an argument does not fit; the message says which and how.
        """
        points = self.encode(source, source_lengths)
        check_tokens("target", target, points.key.shape[1])
        if len(target) != points.batch:
            raise ValueError(f"target has a batch of {len(target)}; source has {points.batch}")
        if (target >= points.key_lengths.unsqueeze(1)).any():
            raise ValueError("target points beyond source_lengths; it must point within")
        before = F.pad(target[:, :-1], (1, 0))
        rows = torch.arange(points.batch, device=target.device).unsqueeze(1)
        d, _ = self.decoder(points.source[rows, before], points.state)
        free = None
        if self.distinct:
            free = F.one_hot(before, points.key.shape[1]).cumsum(1) == 0
            free[..., SYMBOL] = True
            if not free.gather(2, target.unsqueeze(-1)).all():
                raise ValueError("target points twice at a position; distinct forbids it")
        return self.head(d, points.key, key_lengths=points.key_lengths, attn_mask=free)

    def loss(self, source: Tensor, source_lengths: Tensor, target: Tensor) -> Tensor:
        """-log p of a position (equation 2): the mean over all of `target`, ends included.

        Arguments and errors are those of `forward`.
        """
        log_p = self(source, source_lengths, target)
        ended = (target == SYMBOL).cumsum(1)
        counts = F.pad(ended[:, :-1], (1, 0)) == 0  # no end before
        return F.nll_loss(log_p[counts], target[counts])

    def greedy_search(self, source: Tensor, source_lengths: Tensor, *, max_length: int) -> Decoded:
        """`attnkernels.nn.greedy_search`: its tokens are those of a target.

        Arguments and errors are those of `forward` and of that search.
        """
        points = self.encode(source, source_lengths)
        return greedy_search(self, **_searched(points), max_length=max_length)

    def beam_search(
        self,
        source: Tensor,
        source_lengths: Tensor,
        *,
        max_length: int,
        beams: int = 4,
        length_penalty: float = 0.0,
    ) -> Decoded:
        """`attnkernels.nn.beam_search`: its tokens are those of a target. As `greedy_search`."""
        points = self.encode(source, source_lengths)
        return beam_search(
            self,
            **_searched(points),
            max_length=max_length,
            beams=beams,
            length_penalty=length_penalty,
        )

    def encode(self, source: Tensor, source_lengths: Tensor) -> Points:
        """The source and what the encoder makes of it; arguments and errors as in `forward`."""
        check_features("source", source, self.features, "features")
        if source.ndim != 3:
            raise ValueError(f"source has shape {tuple(source.shape)}; it must be (B, m, features)")
        lengths = check_lengths(source[..., 0], source_lengths)
        packed = pack_padded_sequence(source, lengths, batch_first=True, enforce_sorted=False)
        e, state = self.encoder(packed)
        e, _ = pad_packed_sequence(e, batch_first=True, total_length=source.shape[1])
        begin, end = (x.expand(len(source), 1, -1) for x in (self.begin, self.end))
        lengths = lengths.to(source.device)
        return Points(torch.cat([begin, source], 1), torch.cat([end, e], 1), lengths + 1, state)

    # What the searches step through: a step takes tokens and gives log-probabilities.

    def prepared(self, memory: Points, key_lengths: Tensor | None = None) -> Points:
        """The points, which are prepared."""
        return memory

    def initial_state(self, prepared: Points, state: Any = None) -> PointerState:
        """The state before the first step."""
        h, c = prepared.state
        return PointerState(h[0], c[0], torch.ones_like(prepared.key[..., 0], dtype=torch.bool))

    def step(
        self, inputs: Tensor, prepared: Points, state: PointerState
    ) -> tuple[Tensor, None, PointerState]:
        """Log-probabilities (R, m + 1) after the tokens inputs (R,), R / B beams of a source."""
        beams = len(inputs) // prepared.batch
        rows = torch.arange(prepared.batch, device=inputs.device).repeat_interleave(beams)
        free = state.free.scatter(1, inputs.unsqueeze(1), False)
        free[:, SYMBOL] = True
        before = state.h.unsqueeze(0), state.c.unsqueeze(0)
        d, (h, c) = self.decoder(prepared.source[rows, inputs].unsqueeze(1), before)
        log_p = self.head(
            d.view(-1, beams, d.shape[-1]),
            prepared.key,
            key_lengths=prepared.key_lengths,
            attn_mask=free.unflatten(0, (-1, beams)) if self.distinct else None,
        )
        return log_p.flatten(0, 1), None, PointerState(h[0], c[0], free)


def _searched(points: Points) -> dict[str, Any]:
    """What a search is told of a pointer network: tokens and log-probabilities are as they are."""
    return {
        "memory": points,
        "embed": lambda tokens: tokens,
        "readout": lambda log_p, _: log_p,
        "start": SYMBOL,
        "eos": SYMBOL,
    }
