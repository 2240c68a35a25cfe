"""Compare AttentionRNN and its searches with float64 twins, brute force, and each other."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from helpers.gradients import close, close_gradients, gradients
from helpers.inputs import F32, F64, normal
from torch import Tensor, nn

from attnkernels.nn import (
    AdditiveAttention,
    AttentionRNN,
    Decoded,
    DecoderState,
    beam_search,
    greedy_search,
)
from attnkernels.testing import assert_within_budget

B, T, M, E, KEY, HIDDEN, UNITS = 3, 6, 33, 4, 6, 8, 5
LENGTHS = torch.tensor([M, 7, 1])


class Leaky(nn.Module):
    """A user's own cell, whose state is a list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(E + KEY + UNITS, UNITS)

    def forward(self, inputs: Tensor, state: list[Tensor] | None) -> list[Tensor]:
        h, count = state if state else (inputs.new_zeros(len(inputs), UNITS), inputs[:, :1] * 0)
        new = torch.tanh(self.linear(torch.cat([inputs, h], -1)))
        return [0.5 * (h + new), count + 1]


CELLS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: nn.GRUCell(E + KEY, UNITS),
    "lstm": lambda: nn.LSTMCell(E + KEY, UNITS),
    "own": Leaky,
}


def make(cell: str = "gru", dtype: torch.dtype = F64, **options: Any) -> AttentionRNN:
    defer = options.pop("defer_gradients", True)
    attention = AdditiveAttention(UNITS, KEY, HIDDEN, **options)
    return AttentionRNN(CELLS[cell](), attention, defer_gradients=defer).to(dtype)


def tensors(dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    """Return inputs (B, T, E) and a memory (B, M, KEY)."""
    return normal(B, T, E, dtype=dtype), normal(B, M, KEY, dtype=dtype)


def twin(rnn: AttentionRNN, inputs: Tensor, memory: Tensor, state: Any) -> tuple[Tensor, ...]:
    """Run the recurrence in plain PyTorch, with one head."""
    a = rnn.attention

    def attend(output: Tensor) -> tuple[Tensor, Tensor]:
        hidden = a.query_proj(output).unsqueeze(1) + a.key_proj(memory)
        weight = a.weight
        if a.bias is not None and a.gain is not None:
            hidden, weight = hidden + a.bias, a.gain * weight / weight.norm()
        scores = torch.tanh(hidden) @ weight
        scores = scores.masked_fill(torch.arange(M) >= LENGTHS[:, None], -torch.inf)
        weights = scores.softmax(-1)
        return (weights.unsqueeze(1) @ memory).squeeze(1), weights

    def output_of(state: Any) -> Tensor:
        return state if isinstance(state, Tensor) else state[0]

    context = memory.new_zeros(B, KEY) if state is None else attend(output_of(state))[0]
    outputs, contexts, weights = [], [], []
    for t in range(T):
        state = rnn.cell(torch.cat([inputs[:, t], context], -1), state)
        context, each = attend(output_of(state))
        outputs.append(output_of(state))
        contexts.append(context)
        weights.append(each)
    return torch.stack(outputs, 1), torch.stack(contexts, 1), torch.stack(weights, 1)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("given", ["zeros", "state"])
@pytest.mark.parametrize("defer", [True, False])
def test_teacher_forcing_against_a_twin(cell: str, given: str, defer: bool) -> None:
    rnn = make(cell, normalize=cell == "lstm", defer_gradients=defer)
    inputs, memory = tensors()
    state, at = None, [inputs, memory, *rnn.parameters()]
    if given == "state":
        first = normal(B, UNITS, dtype=F64)
        at.append(first)
        second = normal(B, 1 if cell == "own" else UNITS, dtype=F64, grad=False)
        state = first if cell == "gru" else [first, second]
    *found, last, weights = rnn(inputs, memory, LENGTHS, state, return_weights=True)
    found.append(weights)
    wanted = twin(rnn, inputs, memory, state)
    close([*found, *gradients(found, at)], [*wanted, *gradients(wanted, at)])
    assert torch.equal(last.context, found[1][:, -1])


def test_float32_is_within_the_budget() -> None:
    rnn = make(dtype=F32)
    inputs, memory = tensors(F32)
    results = []
    for backend, dtype in ((None, F32), ("reference", F32), ("reference", F64)):
        each = copy.deepcopy(rnn).to(dtype)
        each.attention.backend = backend
        x, h = (y.detach().to(dtype).requires_grad_() for y in (inputs, memory))
        found = each(x, h, LENGTHS)[:2]
        results.append([*found, *gradients(found, [x, h, *each.parameters()])])
    for x, y, z in zip(*results, strict=True):
        assert_within_budget(x, y, z, magnitude=30 * max(1.0, z.abs().max().item()))


def test_heads_defer_the_same_gradients() -> None:
    results = []
    rnn = make(num_heads=2, normalize=True)
    inputs, memory = tensors()
    for defer in (True, False):
        rnn.defer_gradients = defer
        *found, _, weights = rnn(inputs, memory, LENGTHS, return_weights=True)
        assert weights.shape == (B, 2, T, M)
        found.append(weights)
        results.append([*found, *gradients(found, [inputs, memory, *rnn.parameters()])])
    close(*results)


@pytest.mark.parametrize("frozen", ["memory", "keys", "all but the memory"])
def test_gradients_of_some_inputs_only(frozen: str) -> None:
    rnn = make()
    inputs, memory = tensors()
    memory.requires_grad_(frozen != "memory")
    if frozen == "keys":
        rnn.attention.key_proj.requires_grad_(False)
    if frozen == "all but the memory":
        rnn.requires_grad_(False)
    at = [x for x in (inputs, memory, *rnn.parameters()) if x.requires_grad]
    found, wanted = rnn(inputs, memory, LENGTHS)[:2], twin(rnn, inputs, memory, None)[:2]
    close(gradients(found, at), gradients(wanted, at))


def test_several_backwards() -> None:
    """Stop short of the keys, take some steps only, all of them twice, and none at all."""
    rnn = make()
    inputs, memory = tensors()
    found, wanted = rnn(inputs, memory, LENGTHS)[:2], twin(rnn, inputs, memory, None)[:2]
    at = [memory, *rnn.attention.parameters()]

    both = partial(close_gradients, found, wanted)
    both(lambda x: x, [inputs])
    both(lambda x: (x[1][:, 2],), at)
    both(lambda x: (x[0][:, :1],), at)
    both(lambda x: x, at)
    both(lambda x: x, at)
    gradients(found, at)
    with pytest.raises(RuntimeError, match="second time"):
        gradients(found, at)
    with torch.no_grad():
        assert not rnn(inputs, memory, LENGTHS)[0].requires_grad


def test_second_derivatives_are_refused_or_right() -> None:
    rnn = make()
    inputs, memory = tensors()
    for at in ([memory], [inputs]):
        with pytest.raises(RuntimeError, match="defer_gradients=False"):
            gradients(rnn(inputs, memory, LENGTHS)[:2], at, create_graph=True)
    rnn.defer_gradients = False
    seconds = []
    for found in (rnn(inputs, memory, LENGTHS)[:2], twin(rnn, inputs, memory, None)[:2]):
        (first,) = gradients(found, [memory], create_graph=True)
        seconds.append(gradients([first], [memory, inputs, rnn.attention.weight]))
    close(*seconds)


@pytest.mark.parametrize("cell", CELLS)
def test_step_by_step_and_in_pieces_equals_teacher_forcing(cell: str) -> None:
    rnn = make(cell)
    inputs, memory = tensors()
    outputs, contexts, last, weights = rnn(inputs, memory, LENGTHS, return_weights=True)
    prepared = rnn.prepared(memory, LENGTHS)
    state = rnn.initial_state(prepared)
    for t in range(T):
        output, context, state, a = rnn.step(inputs[:, t], prepared, state, return_weights=True)
        torch.testing.assert_close(output, outputs[:, t])
        torch.testing.assert_close(context, contexts[:, t])
        torch.testing.assert_close(a, weights[:, t])
    torch.testing.assert_close(list(state.cell), list(last.cell))
    _, _, middle = rnn(inputs[:, :2], prepared)
    rest, _, _ = rnn(inputs[:, 2:], prepared, state=middle)
    torch.testing.assert_close(rest, outputs[:, 2:])


def test_free_running_feeds_itself() -> None:
    """Match teacher forcing of the inputs it computed, with gradients through them."""
    rnn, feed = make(), nn.Linear(UNITS + KEY, E).to(F64)
    inputs, memory = tensors()
    fed = [inputs[:, 0]]

    def following(output: Tensor, context: Tensor) -> Tensor:
        fed.append(feed(torch.cat([output, context], -1)))
        return fed[-1]

    found = rnn.free_running(inputs[:, 0], memory, T, following, LENGTHS)
    assert len(fed) == T
    wanted = rnn(torch.stack(fed, 1), memory, LENGTHS)
    at = [inputs, memory, *rnn.parameters(), *feed.parameters()]
    close(
        [*found[:2], *gradients(found[:2], at, retain_graph=True)],
        [*wanted[:2], *gradients(wanted[:2], at)],
    )


def test_dropout_in_training() -> None:
    rnn = make(dropout=0.5)
    inputs, memory = tensors()
    *_, weights = rnn(inputs, memory, return_weights=True)
    assert (weights == 0).double().mean() > 0.3
    weights.sum().backward()
    assert memory.grad is not None and memory.grad.isfinite().all()


def test_autocast_copies_and_pickles() -> None:
    rnn = make("lstm", F32)
    inputs, memory = tensors(F32)
    wanted = rnn(inputs, memory, LENGTHS)[0]
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn)), make("lstm", F32)):
        other.load_state_dict(rnn.state_dict())
        assert torch.equal(other(inputs, memory, LENGTHS)[0], wanted)
    with torch.autocast("cpu", torch.bfloat16):
        found = rnn(inputs, memory, LENGTHS)[0]
    found.sum().backward()
    torch.testing.assert_close(found.float(), wanted, atol=0.05, rtol=0.05)
    assert all(x.grad is not None and x.grad.isfinite().all() for x in rnn.parameters())


VOCABULARY, EOS, START = 3, 2, 0


class Speller(nn.Module):
    """An AttentionRNN with an embedding and a readout whose scores are far apart."""

    def __init__(self, cell: str = "gru") -> None:
        super().__init__()
        self.rnn = make(cell)
        self.embedding = nn.Embedding(VOCABULARY, E, dtype=F64)
        self.linear = nn.Linear(UNITS + KEY, VOCABULARY, dtype=F64)
        nn.init.normal_(self.linear.weight, std=2.0)

    def readout(self, output: Tensor, context: Tensor) -> Tensor:
        return self.linear(torch.cat([output, context], -1))

    def search(self, search: Callable[..., Decoded], memory: Tensor, **options: Any) -> Decoded:
        tokens = {"start": START, "eos": EOS}
        maps = {"embed": self.embedding, "readout": self.readout}
        return search(self.rnn, memory, LENGTHS, **(tokens | maps | {"max_length": 4} | options))

    def log_prob(self, tokens: tuple[int, ...], memory: Tensor) -> Tensor:
        """Return log p (B,) by teacher forcing."""
        given = torch.tensor([[START, *tokens[:-1]]]).expand(B, -1)
        outputs, contexts, _ = self.rnn(self.embedding(given), memory, LENGTHS)
        log_p = self.readout(outputs, contexts).log_softmax(-1)
        return log_p[:, range(len(tokens)), tokens].sum(-1)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_a_wide_beam_is_brute_force(cell: str, alpha: float) -> None:
    """Find all sequences, ended by eos or cut off at max_length, in order of their scores."""
    speller, memory, longest = Speller(cell), tensors()[1], 4
    sequences = [
        tokens
        for length in range(1, longest + 1)
        for tokens in product(range(VOCABULARY), repeat=length)
        if EOS not in tokens[:-1] and (tokens[-1] == EOS or length == longest)
    ]
    with torch.no_grad():
        log_probs = torch.stack([speller.log_prob(each, memory) for each in sequences], 1)
    penalty = torch.tensor([((5 + len(each)) / 6) ** alpha for each in sequences], dtype=F64)
    found = speller.search(
        beam_search, memory, beams=len(sequences) + 4, length_penalty=alpha, max_length=longest
    )
    scores, order = (log_probs / penalty).sort(1, descending=True)
    kept = slice(0, len(sequences))
    torch.testing.assert_close(found.scores[:, kept], scores)
    torch.testing.assert_close(found.log_probs[:, kept], log_probs.gather(1, order))
    assert found.log_probs[:, len(sequences) :].isneginf().all()
    for b in range(B):
        for rank, at in enumerate(order[b].tolist()):
            wanted = sequences[at]
            assert found.lengths[b, rank] == len(wanted)
            padded = [*wanted, *[EOS] * (longest - len(wanted))]
            assert found.tokens[b, rank].tolist() == padded


@pytest.mark.parametrize("cell", CELLS)
def test_a_beam_of_one_is_greedy(cell: str) -> None:
    speller, memory = Speller(cell), tensors()[1]
    found, wanted = (
        speller.search(search, memory, max_length=9, **options)
        for search, options in ((beam_search, {"beams": 1}), (greedy_search, {}))
    )
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y)
    for b in range(B):
        tokens = wanted.tokens[b, 0, : wanted.lengths[b, 0]].tolist()
        log_prob = speller.log_prob(tuple(tokens), memory)[b]
        torch.testing.assert_close(wanted.log_probs[b, 0], log_prob.detach())


def test_searches_stop_at_eos() -> None:
    speller, memory = Speller(), tensors()[1]
    with torch.no_grad():
        speller.linear.bias[EOS] = 1e3
    for search in (beam_search, greedy_search):
        found = speller.search(search, memory, max_length=50)
        assert (found.lengths[:, 0] == 1).all() and (found.tokens[:, 0, 0] == EOS).all()
    assert found.tokens.shape == (B, 1, 1)


def test_searches_start_from_a_state() -> None:
    speller, memory = Speller(), tensors()[1]
    state = normal(B, UNITS, dtype=F64, size=3.0)
    found = speller.search(beam_search, memory, beams=1, state=state)
    wanted = speller.search(greedy_search, memory, state=state)
    assert torch.equal(found.tokens, wanted.tokens)
    torch.testing.assert_close(found.scores, wanted.scores)


def test_refusals() -> None:
    rnn, (inputs, memory) = make(), tensors()
    prepared = rnn.prepared(memory, LENGTHS)
    with pytest.raises(
        TypeError, match="attention must be an attention of attnkernels.nn, .* got Linear"
    ):
        AttentionRNN(nn.GRUCell(2, 2), nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cell must be a module that is called, got int"):
        AttentionRNN(3, rnn.attention)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"inputs must have shape \(B, T, e\)"):
        rnn(inputs[0], memory)
    with pytest.raises(ValueError, match="inputs must have T of at least 1"):
        rnn(inputs[:, :0], memory)
    with pytest.raises(ValueError, match=r"inputs must .* = \(3, \*, \*\), got \(6, 6, 4\)"):
        rnn(inputs.repeat(2, 1, 1), memory)
    with pytest.raises(ValueError, match=r"inputs must .* = \(3, \*, \*\), got \(2, 6, 4\)"):
        rnn(inputs[:2], memory)
    with pytest.raises(ValueError, match="key_lengths must be None for a prepared memory"):
        rnn(inputs, prepared, LENGTHS)
    with pytest.raises(ValueError, match="steps must be an int of at least 1, got 0"):
        rnn.free_running(inputs[:, 0], memory, 0, lambda output, context: output)
    with pytest.raises(ValueError, match="multiple of B = 3"):
        rnn.step(inputs[:2, 0], prepared, rnn.initial_state(prepared))
    with pytest.raises(TypeError, match="cell's state"):
        rnn(inputs, memory, state=DecoderState)
    speller = Speller()
    for options, message in (
        ({"beams": 0}, "beams must be an int of at least 1, got 0"),
        ({"max_length": 0}, "max_length must be an int of at least 1, got 0"),
        ({"eos": 7}, "eos must be a token"),
        ({"readout": lambda output, context: output[0]}, "readout must return logits"),
    ):
        with pytest.raises(ValueError, match=message):
            speller.search(beam_search, memory, **options)
