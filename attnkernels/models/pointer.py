"""Pointer networks: the output is a sequence of positions of the input.

Vinyals, Fortunato and Jaitly, "Pointer Networks" (1506.03134). The output vocabulary grows with the
input, so there is no embedding and no readout: attention's distribution over the input is the
output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import checks
from ..nn import Decoded, PointerHead, beam_search, greedy_search, inputs
from ..ops.codes import PrecisionName
from .common import lengths_on_cpu, read, tokens

SYMBOL = 0  # begins an input sequence and ends an output sequence; positions count from 1


class Points(NamedTuple):
    """A source as the decoder reads it: the symbol, then the positions from 1.

    Attributes:
        source: (B, m + 1, features).
        key: (B, m + 1, hidden_dim).
        key_lengths: (B,), int64, the symbol included.
        state: h and c of the encoder after the last vector, (1, B, hidden_dim) each.
    """

    source: Tensor
    key: Tensor
    key_lengths: Tensor
    state: tuple[Tensor, Tensor]

    @property
    def batch(self) -> int:
        """B, the number of sources."""
        return len(self.key)

    @property
    def device(self) -> torch.device:
        """The device of the keys."""
        return self.key.device


class PointerState(NamedTuple):
    """The state that one step hands to the next.

    Attributes:
        h, c: (R, hidden_dim), of the decoder.
        free: (R, m + 1), bool: True for positions that were not pointed at.
    """

    h: Tensor
    c: Tensor
    free: Tensor

    def index_select(self, index: Tensor) -> PointerState:
        """Return the rows `index` (1-D, int32 or int64)."""
        return PointerState(*(x.index_select(0, index) for x in self))


class PointerNetwork(nn.Module):
    """One LSTM reads vectors P_1 ... P_n, a second one points at them (section 2.3; figure 1b).

        e_j = encoder(P_1 ... P_j)        d_i = decoder(d_{i-1}, P_{C_{i-1}}), from the last e
        u_ij = v . tanh(W_1 e_j + W_2 d_i)    p(C_i | C_1 ... C_{i-1}, P) = softmax_j(u_ij)

    P_0 is the symbol that begins an output, e_0 the one that ends it; both are learned. The vector
    pointed at is the next input of the decoder. There is no context: attention serves u alone.

    Args:
        features: features of a vector P_j, 2 for points of a plane.
        hidden_dim: features of e, d and the score (in the paper 256 or 512).
        distinct: never point twice at a position, in training and in searches. The paper does so
            for tours only, in the search (section 4.4): set this attribute after training. The
            symbol is always free.
        precision, backend: as in `attnkernels.additive_scores`.

    Raises:
        TypeError: ``distinct`` is not a bool.
        ValueError: a size is not a positive int, or ``precision`` or ``backend`` is not a name of
            one.
    """

    def __init__(
        self,
        features: int,
        *,
        hidden_dim: int = 256,
        distinct: bool = False,
        precision: PrecisionName = "exact",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        features, hidden_dim = inputs.sizes(features=features, hidden_dim=hidden_dim)
        checks.flags(distinct=distinct)
        self.features, self.distinct = features, distinct
        self.encoder = nn.LSTM(features, hidden_dim, batch_first=True)
        self.decoder = nn.LSTM(features, hidden_dim, batch_first=True)
        sizes = hidden_dim, hidden_dim, hidden_dim
        self.head = PointerHead(*sizes, precision=precision, backend=backend)
        self.begin = nn.Parameter(torch.empty(features).uniform_(-0.08, 0.08))  # section 4.1
        self.end = nn.Parameter(torch.empty(hidden_dim).uniform_(-0.08, 0.08))

    def forward(self, source: Tensor, source_lengths: Tensor, target: Tensor) -> Tensor:
        """Return the log-probabilities of every position, given those before it (equation 3).

        Args:
            source: (B, m, features), in the parameters' dtype: the vectors P.
            source_lengths: (B,), int64, each in [1, m]; vectors beyond are not read.
            target: (B, T), int64: positions from 1, then 0 for the end, and as padding.

        Returns:
            (B, T, m + 1): row t is the distribution of ``target[:, t]``, the end first.
            Positions that cannot be pointed at have -inf. Rows of padding are meaningless.

        Raises:
            TypeError, ValueError: an argument does not fit; the message names it.
        """
        points = self.encode(source, source_lengths)
        tokens("target", target, points.key.shape[1], points.batch)
        if (target >= points.key_lengths.unsqueeze(1)).any():
            raise ValueError("target must point within source_lengths, got a position beyond")
        before = F.pad(target[:, :-1], (1, 0))
        rows = torch.arange(points.batch, device=target.device).unsqueeze(1)
        d, _ = self.decoder(points.source[rows, before], points.state)
        free = None
        if self.distinct:
            free = F.one_hot(before, points.key.shape[1]).cumsum(1) == 0
            free[..., SYMBOL] = True
            if not free.gather(2, target.unsqueeze(-1)).all():
                raise ValueError("target must be distinct positions, got one of them twice")
        return self.head(d, points.key, key_lengths=points.key_lengths, attn_mask=free)

    if TYPE_CHECKING:
        __call__ = forward

    def loss(self, source: Tensor, source_lengths: Tensor, target: Tensor) -> Tensor:
        """Return -log p of a position (equation 2): the mean over `target`, ends included.

        Arguments and errors are those of `forward`.
        """
        log_p = self(source, source_lengths, target)
        ended = (target == SYMBOL).cumsum(1)
        counts = F.pad(ended[:, :-1], (1, 0)) == 0  # no end before
        return F.nll_loss(log_p[counts], target[counts])

    def greedy_search(self, source: Tensor, source_lengths: Tensor, *, max_length: int) -> Decoded:
        """Run `attnkernels.nn.greedy_search`; its tokens are those of a target.

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
        """Run `attnkernels.nn.beam_search`; otherwise as `greedy_search`."""
        found = _searched(self.encode(source, source_lengths))
        return beam_search(
            self, **found, max_length=max_length, beams=beams, length_penalty=length_penalty
        )

    def encode(self, source: Tensor, source_lengths: Tensor) -> Points:
        """Return the source and its encoding; arguments and errors are those of `forward`."""
        checks.tensor("source", source, "(B, m, features)", (None, None, self.features))
        lengths = lengths_on_cpu("source_lengths", source_lengths, *source.shape[:2])
        e, state = read(self.encoder, source, lengths)
        begin, end = (x.expand(source.shape[0], 1, -1) for x in (self.begin, self.end))
        lengths = lengths.to(source.device)
        return Points(torch.cat([begin, source], 1), torch.cat([end, e], 1), lengths + 1, state)

    # The methods of `attnkernels.nn.decoding.Steps`: a step maps tokens to log-probabilities.

    def prepared(self, memory: Points, key_lengths: Tensor | None = None) -> Points:
        """Return the points, which need no preparation."""
        return memory

    def initial_state(self, prepared: Points, state: Any = None) -> PointerState:
        """Return the state before the first step."""
        h, c = prepared.state
        return PointerState(h[0], c[0], torch.ones_like(prepared.key[..., 0], dtype=torch.bool))

    def step(
        self, inputs: Tensor, prepared: Points, state: PointerState
    ) -> tuple[Tensor, None, PointerState]:
        """Return log-probabilities (R, m + 1) after tokens inputs (R,), R / B beams per source."""
        beams = inputs.shape[0] // prepared.batch
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
    """Return the arguments of a search; its inputs are tokens, its logits log-probabilities."""
    return {
        "memory": points,
        "embed": lambda tokens: tokens,
        "readout": lambda log_p, _: log_p,
        "start": SYMBOL,
        "eos": SYMBOL,
    }
