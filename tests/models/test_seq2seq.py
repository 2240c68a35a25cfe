"""Seq2Seq: learning, searches against teacher forcing, and the orders of the source."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.inputs import F32, F64
from torch import Tensor, nn

from attnkernels.models.seq2seq import Seq2Seq
from attnkernels.nn import Decoded
from attnkernels.testing import assert_within_budget

SOURCE, TARGET = 7, 9  # tokens; 3 and up are words, in both
SIZES: dict[str, Any] = {"embedding_dim": 8, "hidden_dim": 24, "maxout_dim": 12}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reversed": {"reverse_source": True},
    "twice": {"repeat_source": True},
    "twice reversed": {"reverse_source": True, "repeat_source": True},
}


def make(**options: Any) -> Seq2Seq:
    return Seq2Seq(SOURCE, TARGET, **(SIZES | options))


def pairs(batch: int, longest: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Return random sources of all lengths, and their translations: each token + 2."""
    lengths = 1 + torch.arange(batch) % longest
    source = torch.randint(3, SOURCE, (batch, longest))
    source[torch.arange(longest) >= lengths[:, None]] = 0
    target = torch.zeros(batch, longest + 1, dtype=torch.int64)
    target[:, :-1] = torch.where(source > 0, source + 2, 0)
    target[torch.arange(batch), lengths] = 2
    return source, lengths, target


def loss_of(model: nn.Module, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    logits = model(source, lengths, target)
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)


def learn(model: nn.Module, steps: int, batch: int | None, lr: float = 0.01) -> float:
    """Return the loss after training on one batch of eight, or on a new batch per step."""
    optimizer = torch.optim.Adam([x for x in model.parameters() if x.requires_grad], lr)
    given = pairs(8)
    loss = torch.tensor(torch.inf)
    for _ in range(steps):
        loss = loss_of(model, *(given if batch is None else pairs(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def translated(model: Any, source: Tensor, lengths: Tensor, target: Tensor) -> float:
    """Return the share of sources whose greedy translation is the target."""
    tokens = model.eval().greedy_search(source, lengths, max_length=target.shape[1]).tokens[:, 0]
    wide = target.clone()
    wide[wide == 0] = 2  # searches pad with the end
    tokens = nn.functional.pad(tokens, (0, target.shape[1] - tokens.shape[1]), value=2)
    return (tokens == wide).all(1).double().mean().item()


def log_probs_of(model: Any, source: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
    """Return log p (B,) of tokens (B, L) up to their first end, by teacher forcing."""
    log_p = model(source, lengths, tokens).log_softmax(-1)
    each = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    ends = (tokens == model.end).long()
    return (each * (ends.cumsum(1) - ends == 0)).sum(1)


def check_searches(model: Any, source: Tensor, lengths: Tensor) -> Decoded:
    """Assert that searches report what teacher forcing does; return those of four beams."""
    greedy = model.greedy_search(source, lengths, max_length=7)
    beam = model.beam_search(source, lengths, max_length=7, beams=1)
    for x, y in zip(greedy, beam, strict=True):
        torch.testing.assert_close(x, y)
    found = model.beam_search(source, lengths, max_length=7, beams=4)
    for rank in range(4):
        wanted = log_probs_of(model, source, lengths, found.tokens[:, rank])
        torch.testing.assert_close(found.log_probs[:, rank], wanted.detach())
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_overfits_a_small_batch(name: str) -> None:
    model = make(**OPTIONS[name])
    assert learn(model, 150, None) < 0.02
    torch.manual_seed(0)  # other words than those of its training
    assert translated(model, *pairs(200)) < 0.9


def test_learns_short_sentences_it_has_not_seen() -> None:
    model = make(hidden_dim=48)
    before = translated(model, *pairs(200, 3))
    optimizer = torch.optim.Adam([x for x in model.parameters() if x.requires_grad], 0.01)
    for _ in range(250):
        loss = loss_of(model.train(), *pairs(32, 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.1 and translated(model, *pairs(200, 3)) > 0.95


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_read_in_which_order(name: str) -> None:
    """The plain model reads a source put into that order by hand as the model does."""
    model, plain = make(**OPTIONS[name]).eval(), make().eval()
    plain.load_state_dict(model.state_dict())
    source, lengths, target = pairs(6)
    for row, length in enumerate(lengths.tolist()):
        words = source[row, :length].tolist()
        words = words * 2 if model.repeat_source else words
        words = words[::-1] if model.reverse_source else words
        alone = torch.tensor([words]), torch.tensor([len(words)])
        wanted = plain(*alone, target[row : row + 1])
        found = model(source, lengths, target)[row : row + 1]
        torch.testing.assert_close(found, wanted)
        vector = model.sentence_embeddings(source, lengths)[row]
        torch.testing.assert_close(vector, plain.sentence_embeddings(*alone)[0])
        assert vector.shape == (SIZES["hidden_dim"],)


def test_padding_is_not_read() -> None:
    model = make().double()
    source, lengths, target = pairs(6)
    other = source.masked_fill(source == 0, 5)
    assert torch.equal(model(source, lengths, target), model(other, lengths, target))


def test_the_vector_is_the_only_way() -> None:
    """The gradient of a source's embedding passes through c; without c there is none."""
    model = make()
    source, lengths, target = pairs(6)
    assert learn_gradient(model, source, lengths, target) > 0
    model.sentence_embeddings = lambda *a: torch.zeros(6, SIZES["hidden_dim"])  # type: ignore
    assert learn_gradient(model, source, lengths, target) == 0


def learn_gradient(model: Seq2Seq, *given: Tensor) -> float:
    loss = loss_of(model, *given)
    at = model.source_embedding.weight
    (gradient,) = torch.autograd.grad(loss, [at], materialize_grads=True, allow_unused=True)
    return gradient.abs().sum().item()


def test_float32_is_within_the_budget_and_the_stepper_is_the_decoder() -> None:
    """Compare the GRU over the whole target with the steps of the searches, and gradients."""
    model = make().to(F32)
    source, lengths, target = pairs(6)

    def stepped(model: Seq2Seq) -> Tensor:
        c = model.sentence_embeddings(source, lengths)
        begin = torch.full_like(target[:, :1], model.begin)
        inputs = model.target_embedding(torch.cat([begin, target[:, :-1]], 1))
        state = torch.tanh(model.initial(c))
        outputs, contexts, _ = model.stepper(inputs, c.unsqueeze(1), None, state)
        return model.readout(outputs, contexts)

    def results(model: Seq2Seq, forward: Any) -> list[Tensor]:
        logits = forward(model)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)
        at = [x for x in model.parameters() if x.requires_grad]
        return [logits, *torch.autograd.grad(loss, at)]

    found = results(model, lambda model: model(source, lengths, target))
    model.stepper.attention.backend = "reference"
    plain, exact = results(model, stepped), results(copy.deepcopy(model).to(F64), stepped)
    for x, y, z in zip(found, plain, exact, strict=True):
        assert_within_budget(x, y, z, magnitude=30 * max(1.0, z.abs().max().item()))


@pytest.mark.parametrize("name", OPTIONS)
def test_searches_say_what_teacher_forcing_does(name: str) -> None:
    model = make(**OPTIONS[name]).double().eval()
    learn(model, 20, 16)
    source, lengths, _ = pairs(6)
    found = check_searches(model, source, lengths)
    greedy = model.greedy_search(source, lengths, max_length=7)
    assert (found.log_probs[:, 0] >= greedy.log_probs[:, 0] - 1e-9).all()


def test_begin_and_end_are_arguments() -> None:
    model = make(begin=8, end=1).eval()
    source, lengths, _ = pairs(6)
    with torch.no_grad():
        model.readout.logits.bias[1] = 1e3
    assert (model.greedy_search(source, lengths, max_length=5).tokens == 1).all()
    other = make(begin=3, end=1).eval()
    other.load_state_dict(model.state_dict())
    target = torch.full((6, 2), 4)
    assert not torch.equal(model(source, lengths, target), other(source, lengths, target))


def check_checkpoint(model: Any, other: Any, path: Path) -> None:
    """Assert that `other` is `model` after loading its checkpoint, and was not before."""
    given = pairs(6)
    assert not torch.equal(model(*given), other(*given))
    torch.save(model.state_dict(), path / "model.pt")
    other.load_state_dict(torch.load(path / "model.pt", weights_only=True))
    assert torch.equal(model(*given), other(*given))
    found, wanted = (x.beam_search(*given[:2], max_length=5, beams=3) for x in (other, model))
    assert torch.equal(found.tokens, wanted.tokens)
    found, wanted = (x.greedy_search(*given[:2], max_length=5) for x in (other, model))
    assert torch.equal(found.tokens, wanted.tokens)


def check_dropout(model: Any) -> None:
    """Assert that a model with dropout is random in training only."""
    given = pairs(6)
    assert not torch.equal(model(*given), model(*given))
    model.eval()
    assert torch.equal(model(*given), model(*given))


def test_a_checkpoint_gives_the_same_model(tmp_path: Path) -> None:
    check_checkpoint(make().eval(), make().eval(), tmp_path)


def test_dropout_in_training_only() -> None:
    check_dropout(make(dropout=0.5))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"begin must be a token in \[1, 9\), got 9"):
        make(begin=9)
    with pytest.raises(ValueError, match=r"end must be a token in \[1, 9\), got 0"):
        make(end=0)
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        make(dropout=1.0)
    model = make()
    source, lengths, target = pairs(3)
    with pytest.raises(TypeError, match="source must be int64, got torch.float32"):
        model(source.float(), lengths, target)
    with pytest.raises(TypeError, match="target must be int64, got torch.int32"):
        model(source, lengths, target.int())
    with pytest.raises(ValueError, match=r"source must have shape \(B, T\) .*, got \(15,\)"):
        model(source.flatten(), lengths, target)
    with pytest.raises(
        ValueError, match=r"source must have tokens in \[0, 7\), got tokens from 0 to 99"
    ):
        model(source.masked_fill(source == source[0, 0], 99), lengths, target)
    with pytest.raises(TypeError, match="source_lengths must be a tensor .*, got list"):
        model(source, [1, 2, 3], target)
    with pytest.raises(
        ValueError, match=r"source_lengths must have shape \(B,\) = \(3,\), got \(2,\)"
    ):
        model(source, lengths[:2], target)
    for wrong in (lengths - 1, lengths + 3):
        with pytest.raises(ValueError, match=r"source_lengths must lie in \[1, 5\]"):
            model(source, wrong, target)
    with pytest.raises(
        ValueError, match=r"target must have shape \(B, T\) = \(3, \*\), got \(2, 6\)"
    ):
        model(source, lengths, target[:2])
