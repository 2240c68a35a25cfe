"""Search for sequences of tokens with a decoder: the best token at each step, or the best beams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from ..functional import checks
from . import inputs
from .calls import as_forward
from .tracing import Trace, as_weights

Embed = Callable[[Tensor], Tensor]  # tokens (R,), int64 -> inputs (R, e)


class Prepared(Protocol):
    """A memory that is ready for all steps of a search."""

    @property
    def batch(self) -> int:
        """B, the number of sequences."""

    @property
    def device(self) -> torch.device:
        """The device of the tokens."""


class State(Protocol):
    """The state between two steps of a search, with one row per beam."""

    def index_select(self: S, index: Tensor) -> S:
        """Return the rows `index` (1-D, int64)."""


S = TypeVar("S", bound=State)
P = TypeVar("P", bound=Prepared)
M = TypeVar("M", contravariant=True)  # memory
C = TypeVar("C", covariant=True)  # context
# output, context -> logits; with copies output, context, weights
Readout: TypeAlias = Callable[[Tensor, Any], Tensor] | Callable[[Tensor, Any, Tensor], Tensor]


class Steps(Protocol[M, P, S, C]):
    """A decoder that can be searched: an `AttentionRNN`, or any model with these methods."""

    def prepared(self, memory: M, key_lengths: Tensor | None = None) -> P:
        """Return the memory for all steps."""

    def initial_state(self, prepared: P, state: Any = None) -> S:
        """Return the state before the first step, with one row per sequence."""

    def step(self, inputs: Tensor, prepared: P, state: S) -> tuple[Tensor, C, S]:
        """Return the output and the context, which the readout takes, and the next state."""


class Decoded(NamedTuple):
    """The sequences that a search found, best first.

    Attributes:
        tokens: (B, beams, L), int64, without the start; ``eos`` after the end.
        lengths: (B, beams), int64, the number of tokens, eos included.
        log_probs: (B, beams), the sum of the log-probabilities of these tokens, in float32 (float64
            for float64 logits).
        scores: (B, beams), log_probs divided by the length penalty; beams are ranked by them.
        alignments: (B, beams, L, m), with heads (B, beams, H, L, m): the weights with which each
            token was read from the memory, zeros after the end. None unless requested.
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    scores: Tensor
    alignments: Tensor | None = None


@torch.no_grad()
def beam_search(
    rnn: Steps[M, P, S, C],
    memory: M,
    key_lengths: Tensor | None = None,
    state: Any = None,
    *,
    embed: Embed,
    readout: Readout,
    start: int,
    eos: int,
    max_length: int,
    beams: int = 4,
    length_penalty: float = 0.0,
    return_alignments: bool = False,
    copies: bool = False,
) -> Decoded:
    """Return the best sequences that a beam of this width finds.

    Each step extends every beam by every token, and keeps the best ``beams`` of these candidates
    and the finished sequences. The beams of a sequence share its keys, without copies. Dropout
    follows the mode of the modules: call eval() first.

    Args:
        rnn: an `AttentionRNN`, or any model with the methods of `Steps`.
        memory, key_lengths, state: as in `AttentionRNN.forward`.
        embed: tokens (R,) -> inputs (R, e), for R = B * beams rows.
        readout: (output (R, hidden), context (R, value_dim)) -> logits (R, V).
        start: the token whose embedding is the first input.
        eos: the token that ends a sequence, in [0, V).
        max_length: the maximum number of tokens, eos included; a sequence that is cut off has no
            eos.
        beams: the number of sequences kept and returned. If fewer exist, the rest have log_probs of
            -inf.
        length_penalty: alpha of GNMT (1609.08144, equation 14): beams are ranked by
            log p / ((5 + length) / 6)^alpha. 0 ranks by the log-probability itself.
        return_alignments: also return the alignments; ``rnn.step`` is called with
            ``return_weights=True``, and so it is with ``copies``.
        copies: call readout(output, context, weights) with the weights (R, m), averaged over heads,
            for a head that copies from the source, such as `PointerGenerator`. It may return the
            log-probabilities themselves. ``embed`` then gets the tokens that it has names for.

    Returns:
        A `Decoded`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    max_length, beams = inputs.sizes(max_length=max_length, beams=beams)
    length_penalty = checks.number("length_penalty", length_penalty)
    start, eos = _checked(rnn, embed, readout, start, eos)
    checks.flags(return_alignments=return_alignments, copies=copies)
    prepared = as_forward(rnn, "prepared")(memory, key_lengths)
    step, trace = _stepper(rnn, readout, return_alignments, copies)
    batch = prepared.batch
    device = prepared.device
    first_rows = torch.arange(batch, device=device).repeat_interleave(beams)
    now = as_forward(rnn, "initial_state")(prepared, state).index_select(first_rows)

    last = torch.full((batch * beams,), start, dtype=torch.int64, device=device)
    tokens = torch.empty(batch, beams, 0, dtype=torch.int64, device=device)
    done = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    lengths = torch.zeros(batch, beams, dtype=torch.int64, device=device)
    log_probs = torch.full((batch, beams), -torch.inf, device=device)
    log_probs[:, 0] = 0.0  # all beams are equal before the first step: only one of them counts
    for _ in range(max_length):
        logits, now = step(embed(last), prepared, now)
        log_p = _log_probs(logits, batch * beams, eos)
        vocabulary = log_p.shape[-1]
        log_p = log_p.view(batch, beams, vocabulary)
        finished = torch.full_like(log_p, -torch.inf)  # a finished beam adds eos at no cost
        finished[..., eos] = 0.0
        log_p = torch.where(done.unsqueeze(-1), finished, log_p)
        candidates = log_probs.to(log_p.dtype).unsqueeze(-1) + log_p
        longer = lengths + ~done
        ranks = candidates / _penalty(longer, length_penalty, log_p.dtype).unsqueeze(-1)

        chosen = ranks.flatten(1).topk(beams, 1).indices
        beam, token = chosen // vocabulary, chosen % vocabulary
        log_probs = candidates.flatten(1).gather(1, chosen)
        lengths = longer.gather(1, beam)
        done = done.gather(1, beam) | (token == eos)
        history = tokens.gather(1, beam.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        tokens = torch.cat([history, token.unsqueeze(-1)], -1)
        last = token.flatten()
        rows = (beam + beams * torch.arange(batch, device=device)[:, None]).view(-1)
        now = now.index_select(rows)
        trace.select(rows)
        if done.all():
            break
    scores = log_probs / _penalty(lengths, length_penalty, log_probs.dtype)
    return Decoded(tokens, lengths, log_probs, scores, trace.alignments(lengths))


def greedy_search(
    rnn: Steps[M, P, S, C],
    memory: M,
    key_lengths: Tensor | None = None,
    state: Any = None,
    *,
    embed: Embed,
    readout: Readout,
    start: int,
    eos: int,
    max_length: int,
    return_alignments: bool = False,
    copies: bool = False,
) -> Decoded:
    """Return the sequences of the best token at every step: `beam_search` with one beam.

    Arguments, results and errors are those of `beam_search`.
    """
    (max_length,) = inputs.sizes(max_length=max_length)
    start, eos = _checked(rnn, embed, readout, start, eos)
    checks.flags(return_alignments=return_alignments, copies=copies)
    with torch.no_grad():
        prepared = as_forward(rnn, "prepared")(memory, key_lengths)
        step, trace = _stepper(rnn, readout, return_alignments, copies)
        now = as_forward(rnn, "initial_state")(prepared, state)
        last = torch.full((prepared.batch,), start, device=prepared.device)
        done = torch.zeros_like(last, dtype=torch.bool)
        lengths = torch.zeros_like(last)
        total: Tensor | None = None
        tokens = []
        for _ in range(max_length):
            logits, now = step(embed(last), prepared, now)
            best = _log_probs(logits, prepared.batch, eos).max(-1)
            gained = best.values.masked_fill(done, 0.0)
            total = gained if total is None else total + gained
            last = best.indices.masked_fill(done, eos)
            lengths = lengths + ~done
            done = done | (last == eos)
            tokens.append(last)
            if done.all():
                break
    assert total is not None
    total, lengths = total.unsqueeze(1), lengths.unsqueeze(1)
    found = torch.stack(tokens, -1).unsqueeze(1)
    return Decoded(found, lengths, total, total, trace.alignments(lengths))


def _stepper(
    rnn: Any, readout: Any, return_alignments: bool, copies: bool
) -> tuple[Callable[[Tensor, Any, Any], tuple[Tensor, Any]], Trace]:
    """Return a function (inputs, prepared, state) -> (logits, state), and what it traces."""
    step, trace = as_forward(rnn, "step"), Trace(return_alignments)
    if not (return_alignments or copies):

        def plain(inputs: Tensor, prepared: Any, state: Any) -> tuple[Tensor, Any]:
            output, context, state = step(inputs, prepared, state)
            return readout(output, context), state

        return plain, trace

    def weighted(inputs: Tensor, prepared: Any, state: Any) -> tuple[Tensor, Any]:
        output, context, state, weights = step(inputs, prepared, state, return_weights=True)
        weights = as_weights(weights, prepared)
        trace.add(weights)
        if not copies:
            return readout(output, context), state
        return readout(output, context, weights.mean(1) if weights.ndim > 2 else weights), state

    return weighted, trace


def _checked(rnn: object, embed: object, readout: object, start: Any, eos: Any) -> tuple[int, int]:
    """Check what both searches take, and return the tokens `start` and `eos`."""
    if not all(hasattr(rnn, name) for name in ("prepared", "initial_state", "step")):
        wanted = "have the methods prepared, initial_state and step"
        raise TypeError(f"rnn must {wanted}, got {checks.type_name(rnn)}")
    for name, function in (("embed", embed), ("readout", readout)):
        checks.instance(name, function, Callable, "a function")  # type: ignore[arg-type]
    return checks.integer("start", start), checks.integer("eos", eos)


def _log_probs(logits: Tensor, rows: int, eos: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != rows:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"readout must return logits (B * beams, V) = ({rows}, *), got {given}")
    if not 0 <= eos < logits.shape[1]:
        raise ValueError(f"eos must be a token in [0, {logits.shape[1]}), got {eos}")
    wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
    return logits.log_softmax(-1, dtype=wide)


def _penalty(lengths: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    return ((5.0 + lengths.to(dtype)) / 6.0) ** alpha
