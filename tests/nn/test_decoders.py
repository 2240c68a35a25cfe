"""Compare a decoder with any attention with a plain loop, and its searches with one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.inputs import F64, normal
from torch import Tensor, nn

from attnkernels.nn import (
    AdditiveAttention,
    Alignment,
    AttentionRNN,
    CoverageAttention,
    Decoded,
    DecoderState,
    HardAttention,
    HardChoice,
    LocationSensitiveAttention,
    MonotonicAttention,
    beam_search,
    greedy_search,
)
from attnkernels.testing import assert_within_budget

B, T, M, E, KEY, HIDDEN, UNITS, WORDS = 3, 5, 17, 4, 6, 8, 5, 11
LENGTHS = torch.tensor([M, 7, 2])
SIZES = UNITS, KEY, HIDDEN
ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "additive": lambda: AdditiveAttention(*SIZES),
    "heads": lambda: AdditiveAttention(*SIZES, num_heads=2),
    "location": lambda: LocationSensitiveAttention(*SIZES, channels=3, kernel_size=5),
    "both": lambda: LocationSensitiveAttention(
        *SIZES, channels=3, kernel_size=5, cumulative="both", initial="uniform"
    ),
    "coverage": lambda: CoverageAttention(*SIZES),
    "scanning": lambda: MonotonicAttention(*SIZES, score_bias=0.0, noise=0.0),
    "hard": lambda: HardAttention(*SIZES),
}
every_attention = pytest.mark.parametrize("kind", ATTENTIONS)


def make(kind: str, **options: Any) -> AttentionRNN:
    return AttentionRNN(nn.GRUCell(E + KEY, UNITS), ATTENTIONS[kind](), **options).to(F64)


def attend_once(attention: Any, query: Tensor, state: Any, **options: Any) -> tuple[Any, ...]:
    """Run the `step` of any attention: return context, weights and the next state."""
    if isinstance(attention, AdditiveAttention):
        return *attention.step(query, state, True), state
    if isinstance(attention, HardAttention):
        choice = attention.step(query, state, **options)
        return choice.context, choice, state
    return attention.step(query, state, **options)


def loop(rnn: AttentionRNN, inputs: Tensor, memory: Tensor, first: Tensor | None) -> list[Tensor]:
    """Run the decoder by the public steps of its attention; return outputs, contexts, weights."""
    attention = rnn.attention
    state, cell = attention.prepare(memory, LENGTHS), first
    context = memory.new_zeros(B, KEY)
    if first is not None:
        context, _, state = attend_once(attention, first, state)
    found = []
    for row in inputs.unbind(1):
        cell = rnn.cell(torch.cat([row, context], -1), cell)
        context, weights, state = attend_once(attention, cell, state)
        found.append([cell, context, *flat(weights)])
    return [torch.stack(x, 1) for x in zip(*found, strict=True)]


def flat(weights: Any) -> list[Tensor]:
    """Return weights, or what a choice says, as a list."""
    if isinstance(weights, HardChoice):
        return [weights.positions, weights.log_prob, weights.entropy]
    return [weights]


def gradients(outputs: list[Tensor], at: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    outputs = [x for x in outputs if x.is_floating_point()]
    directions = [torch.randn(x.shape, generator=generator, dtype=F64) for x in outputs]
    return list(torch.autograd.grad(outputs, at, directions, materialize_grads=True))


@every_attention
@pytest.mark.parametrize("given", [False, True])
def test_teacher_forcing_against_a_loop(kind: str, given: bool) -> None:
    rnn = make(kind)
    inputs, memory = normal(B, T, E, dtype=F64), normal(B, M, KEY, dtype=F64)
    first = normal(B, UNITS, dtype=F64) if given else None
    at = [inputs, memory, *rnn.parameters(), *([] if first is None else [first])]
    torch.manual_seed(5)
    outputs, contexts, last, weights = rnn(inputs, memory, LENGTHS, first, return_weights=True)
    found = [outputs, contexts, *flat(weights)]
    torch.manual_seed(5)
    wanted = loop(rnn, inputs, memory, first)
    if kind == "heads":
        wanted[2] = wanted[2].transpose(1, 2)
    for x, y in zip(
        [*found, *gradients(found, at)], [*wanted, *gradients(wanted, at)], strict=True
    ):
        assert x.shape == y.shape
        size = 100 * max(1.0, y.abs().max().item())  # of a sum over steps, keys and sequences
        assert_within_budget(x.to(F64), y.to(F64), y.to(F64), magnitude=size)
    remembers = kind not in ("additive", "heads", "hard")
    assert (last.alignment is not None) == remembers


@every_attention
def test_steps_continue_where_the_last_call_ended(kind: str) -> None:
    rnn = make(kind).eval()
    inputs, memory = normal(B, T, E, dtype=F64), normal(B, M, KEY, dtype=F64)
    whole = rnn(inputs, memory, LENGTHS)
    outputs, _, state = rnn(inputs[:, :2], memory, LENGTHS)
    rest, _, state = rnn(inputs[:, 2:], memory, LENGTHS, state)
    torch.testing.assert_close(torch.cat([outputs, rest], 1), whole[0])
    assert isinstance(state, DecoderState)
    again = state.index_select(torch.tensor([2, 0]))
    assert torch.equal(again.context, state.context[[2, 0]])
    if state.alignment is not None:
        assert isinstance(again.alignment, Alignment) and again.alignment.previous is not None
        assert torch.equal(again.alignment.previous, state.alignment.previous[[2, 0]])


class Tokens(nn.Module):
    """Embeddings and a readout that favours no token for long."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embedding = nn.Embedding(WORDS, E).to(F64)
        self.project = nn.Linear(UNITS + KEY, WORDS).to(F64)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=F64)

    def options(self) -> dict[str, Any]:
        return {"embed": self.embedding, "readout": self.read, "start": 1, "eos": 2}

    def read(self, output: Tensor, context: Tensor) -> Tensor:
        return self.project(torch.cat([output, context], -1))


def searched(rnn: AttentionRNN, memory: Tensor, beams: int, **options: Any) -> Decoded:
    given = {**Tokens().options(), "max_length": 6, "return_alignments": True, **options}
    lengths = given.pop("lengths", LENGTHS)
    if not beams:
        return greedy_search(rnn, memory, lengths, **given)
    return beam_search(rnn, memory, lengths, **given, beams=beams)


@every_attention
def test_greedy_search_is_a_beam_of_one(kind: str) -> None:
    rnn, memory = make(kind).eval(), normal(B, M, KEY, dtype=F64)
    greedy, beam = (searched(rnn, memory, beams) for beams in (0, 1))
    for x, y in zip(greedy, beam, strict=True):
        torch.testing.assert_close(x, y)


@every_attention
def test_a_batch_is_searched_as_its_sequences(kind: str) -> None:
    rnn, memory = make(kind).eval(), normal(B, M, KEY, dtype=F64)
    whole = searched(rnn, memory, 3)
    assert whole.alignments is not None
    for b, length in enumerate(LENGTHS.tolist()):
        one = searched(rnn, memory[b : b + 1, :length], 3, lengths=None)
        assert one.alignments is not None
        steps = one.tokens.shape[-1]
        assert torch.equal(whole.tokens[b, :, :steps], one.tokens[0])
        torch.testing.assert_close(whole.log_probs[b], one.log_probs[0])
        torch.testing.assert_close(whole.alignments[b, ..., :steps, :length], one.alignments[0])
        assert not whole.alignments[b, ..., length:].any()


@every_attention
def test_alignments_of_beams_are_those_of_their_tokens(kind: str) -> None:
    rnn, memory = make(kind).eval(), normal(B, M, KEY, dtype=F64)
    found = searched(rnn, memory, 3)
    assert found.alignments is not None
    embedding = Tokens().embedding
    for beam in range(3):
        tokens = found.tokens[:, beam]
        inputs = embedding(torch.cat([torch.full((B, 1), 1), tokens[:, :-1]], 1))
        weights = rnn(inputs, memory, LENGTHS, return_weights=True)[3]
        if isinstance(weights, HardChoice):
            weights = nn.functional.one_hot(weights.positions, M).to(F64)
        lengths = found.lengths[:, beam]
        before_end = torch.arange(tokens.shape[1]) < lengths[:, None]
        before_end = before_end[:, None, :, None] if kind == "heads" else before_end[..., None]
        wanted = torch.where(before_end, weights, 0.0)
        torch.testing.assert_close(found.alignments[:, beam], wanted)
        sums = found.alignments[:, beam].sum(-1)
        if kind != "scanning":  # whose steps may pass the end
            torch.testing.assert_close(sums, before_end.squeeze(-1).to(F64).expand_as(sums))


@every_attention
def test_a_window_follows_the_last_alignment(kind: str) -> None:
    back, ahead = 1, 2
    rnn, memory = make(kind, window=(back, ahead)), normal(B, M, KEY, dtype=F64)
    inputs, free = normal(B, T, E, dtype=F64), make(kind)
    free.load_state_dict(rnn.state_dict())
    torch.manual_seed(2)
    trained = rnn(inputs, memory, LENGTHS)[0]
    torch.manual_seed(2)
    assert torch.equal(trained, free(inputs, memory, LENGTHS)[0])  # no window in training

    weights = rnn.eval()(inputs, memory, LENGTHS, return_weights=True)[3]
    if isinstance(weights, HardChoice):
        at, last = weights.positions, weights.positions
        outside = (at[:, 1:] >= 0) & (
            (at[:, 1:] < last[:, :-1] - back) | (at[:, 1:] > last[:, :-1] + ahead)
        )
        assert not outside.any()
        return
    mean = weights.mean(1) if kind == "heads" else weights
    torch.testing.assert_close(
        mean[:, 0], weights_without_window(free.eval(), inputs, memory, kind)
    )
    last, at = mean.argmax(-1)[:, :-1, None], torch.arange(M)
    outside = (at < last - back) | (at > last + ahead)
    assert outside.any() and not mean[:, 1:][outside].any()
    assert mean[:, 1:].any()


def weights_without_window(rnn: AttentionRNN, inputs: Tensor, memory: Tensor, kind: str) -> Tensor:
    weights = rnn(inputs, memory, LENGTHS, return_weights=True)[3]
    return (weights.mean(1) if kind == "heads" else weights)[:, 0]


def test_an_attention_of_your_own() -> None:
    class Mean(nn.Module):
        query_dim = UNITS

        def prepare(self, memory: Tensor, key_lengths: Tensor | None = None) -> Any:
            return AdditiveAttention(*SIZES).to(F64).prepare(memory, key_lengths)

        def read(
            self, query: Tensor, prepared: Any, alignment: Any = None, bounds: Any = None, **_: Any
        ) -> Any:
            beams = len(query) // prepared.batch
            context = prepared.value.mean(1).repeat_interleave(beams, 0)
            return context, query.new_full((len(query), M), 1 / M), None

    rnn, memory = (
        AttentionRNN(nn.GRUCell(E + KEY, UNITS), Mean()).to(F64),
        normal(B, M, KEY, dtype=F64),
    )
    contexts = rnn(normal(B, T, E, dtype=F64), memory)[1]
    torch.testing.assert_close(contexts[:, -1], memory.mean(1))
    found = searched(rnn, memory, 2, lengths=None)
    assert found.alignments is not None and found.alignments.shape[-1] == M


def test_bad_arguments() -> None:
    cell = nn.GRUCell(E + KEY, UNITS)
    with pytest.raises(TypeError, match="attention must be an attention of attnkernels.nn"):
        AttentionRNN(cell, nn.Linear(2, 2))  # type: ignore[arg-type]
    attention = AdditiveAttention(*SIZES)
    with pytest.raises(TypeError, match=r"window must be \(back, ahead\) or None, got int"):
        AttentionRNN(cell, attention, window=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"window must be \(back, ahead\), both at least 0"):
        AttentionRNN(cell, attention, window=(-1, 2))
    location = LocationSensitiveAttention(*SIZES)
    with pytest.raises(ValueError, match="query must have shape .* a multiple of B = 3"):
        location.read(torch.zeros(4, UNITS), location.prepare(torch.zeros(B, M, KEY)))
    with pytest.raises(TypeError, match="prepared must be what attention.prepare"):
        location.read(torch.zeros(3, UNITS), attention.prepare(torch.zeros(B, M, KEY)))  # type: ignore[arg-type]
