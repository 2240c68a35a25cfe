"""Sequences of tokens from a decoder: the best token each step, or the best beams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .projections import check_sizes

Readout = Callable[[Tensor, Tensor], Tensor]  # output (R, hidden), context -> logits (R, V)
Embed = Callable[[Tensor], Tensor]  # tokens (R,), int64 -> inputs (R, e)


class Steps(Protocol):
    """What a search steps through: an `AttentionRNN`, or a model that is one in these respects."""

    def prepared(self, memory: Any, key_lengths: Tensor | None = None) -> Any:
        """The memory for all steps; it has a ``batch``, an int, and a ``device``."""

    def initial_state(self, prepared: Any, state: Any = None) -> Any:
        """The state before the first step; it has ``index_select(index)`` of its rows."""

    def step(self, inputs: Tensor, prepared: Any, state: Any) -> tuple[Any, ...]:
        """Output and context, as the readout takes them, and the next state."""


class Decoded(NamedTuple):
    """What a search found, the best first.

    Attributes:
        tokens: (B, beams, L), int64, without the start; ``eos`` after the end.
        lengths: (B, beams), int64: how many tokens there are, eos included.
        log_probs: (B, beams): the sum of the log-probabilities of these tokens.
        scores: (B, beams): log_probs divided by the length penalty, by which beams are ranked.
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    scores: Tensor


@torch.no_grad()
def beam_search(
    rnn: Steps,
    memory: Any,
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
) -> Decoded:
    """The best sequences that a beam of this width finds.

    At each step every beam is continued by every token, and the best ``beams`` of all these and of
    the finished ones are kept. The beams of a sequence share its keys: none are copied. Dropout
    follows the mode of the modules: call eval() before.

    Args:
        rnn: an `AttentionRNN`, or what has the same three methods.
        memory, key_lengths, state: as in `AttentionRNN.forward`.
        embed: tokens (R,) -> inputs (R, e), for R = B * beams rows.
        readout: (output (R, hidden), context (R, value_dim)) -> logits (R, V).
        start: the token whose embedding is the first input.
        eos: the token that ends a sequence.
        max_length: the most tokens of a sequence, eos included; one that is cut off has no eos.
        beams: how many are kept and returned. Where there are fewer sequences than beams, those
            left over have log_probs of -inf.
        length_penalty: alpha of GNMT (1609.08144, equation 14): the rank is by
            log p / ((5 + length) / 6)^alpha. 0 is the log-probability itself.

    Returns:
        A `Decoded`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message says which and how.
    """
    check_sizes(max_length=max_length, beams=beams)
    prepared = rnn.prepared(memory, key_lengths)
    batch = prepared.batch
    device = prepared.device
    first_rows = torch.arange(batch, device=device).repeat_interleave(beams)
    now = rnn.initial_state(prepared, state).index_select(first_rows)

    last = torch.full((batch * beams,), start, dtype=torch.int64, device=device)
    tokens = torch.empty(batch, beams, 0, dtype=torch.int64, device=device)
    done = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    lengths = torch.zeros(batch, beams, dtype=torch.int64, device=device)
    log_probs = torch.full((batch, beams), -torch.inf, device=device)
    log_probs[:, 0] = 0.0  # all beams are the same before the first step: one of them counts
    for _ in range(max_length):
        output, context, now = rnn.step(embed(last), prepared, now)
        log_p = _log_probs(readout(output, context), batch * beams, eos)
        vocabulary = log_p.shape[-1]
        log_p = log_p.view(batch, beams, vocabulary)
        finished = torch.full_like(log_p, -torch.inf)  # a finished beam goes on by a free eos only
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
        now = now.index_select(
            (beam + beams * torch.arange(batch, device=device)[:, None]).view(-1)
        )
        if done.all():
            break
    scores = log_probs / _penalty(lengths, length_penalty, log_probs.dtype)
    return Decoded(tokens, lengths, log_probs, scores)


def greedy_search(
    rnn: Steps,
    memory: Any,
    key_lengths: Tensor | None = None,
    state: Any = None,
    *,
    embed: Embed,
    readout: Readout,
    start: int,
    eos: int,
    max_length: int,
) -> Decoded:
    """The best token at every step: `beam_search` with one beam, without its bookkeeping.

    Arguments, results and errors are those of `beam_search`; beams is 1.
    """
    check_sizes(max_length=max_length)
    with torch.no_grad():
        prepared = rnn.prepared(memory, key_lengths)
        now = rnn.initial_state(prepared, state)
        last = torch.full((prepared.batch,), start, device=prepared.device)
        done = torch.zeros_like(last, dtype=torch.bool)
        lengths = torch.zeros_like(last)
        total: Tensor | None = None
        tokens = []
        for _ in range(max_length):
            output, context, now = rnn.step(embed(last), prepared, now)
            best = _log_probs(readout(output, context), prepared.batch, eos).max(-1)
            gained = best.values.masked_fill(done, 0.0)
            total = gained if total is None else total + gained
            last = best.indices.masked_fill(done, eos)
            lengths = lengths + ~done
            done = done | (last == eos)
            tokens.append(last)
            if done.all():
                break
    assert total is not None
    total = total.unsqueeze(1)
    return Decoded(torch.stack(tokens, -1).unsqueeze(1), lengths.unsqueeze(1), total, total)


def _log_probs(logits: Tensor, rows: int, eos: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != rows:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"readout gave {given}; it must give logits ({rows}, V)")
    if not 0 <= eos < logits.shape[1]:
        raise ValueError(f"eos is {eos}; it must be a token, in [0, {logits.shape[1]})")
    wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
    return logits.log_softmax(-1, dtype=wide)


def _penalty(lengths: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    return ((5.0 + lengths.to(dtype)) / 6.0) ** alpha
