"""RNNsearch: learning, alignment, and searches against teacher forcing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.inputs import F32, F64
from models.test_seq2seq import (
    check_checkpoint,
    check_dropout,
    check_searches,
    learn,
    loss_of,
    pairs,
    translated,
)
from torch import Tensor

from attnkernels.models.rnnsearch import RNNsearch
from attnkernels.models.seq2seq import Seq2Seq
from attnkernels.testing import assert_within_budget

SOURCE, TARGET = 7, 9
SIZES: dict[str, Any] = {
    "embedding_dim": 8,
    "encoder_dim": 12,
    "hidden_dim": 16,
    "align_dim": 10,
    "maxout_dim": 12,
}


def make(**options: Any) -> RNNsearch:
    return RNNsearch(SOURCE, TARGET, **(SIZES | options))


def test_overfits_a_small_batch() -> None:
    assert learn(make(), 150, None) < 0.02


def test_learns_to_translate_and_to_align() -> None:
    """Check the words and the alignment of sources that it has not seen."""
    model = make()
    assert translated(model, *pairs(200)) < 0.1
    learn(model.train(), 300, 32)
    source, lengths, target = pairs(200)
    assert translated(model, source, lengths, target) > 0.95
    _, weights = model(source, lengths, target, return_weights=True)
    assert weights.shape == (200, 6, 5)
    words = torch.arange(6) < lengths[:, None]  # the end of a target is aligned to no word
    looked = weights.argmax(-1)[words]
    assert (looked == torch.arange(6).expand(200, -1)[words]).double().mean() > 0.9


def test_gradients_are_the_references() -> None:
    """Compare every gradient in float32, of either backend, with the reference in float64."""
    model, given, results = make(), pairs(6), []
    for backend, dtype in ((None, F32), ("reference", F32), ("reference", F64)):
        each = copy.deepcopy(model).to(dtype)
        each.decoder.attention.backend = backend
        logits, weights = each(*given, return_weights=True)
        loss = loss_of(each, *given)
        results.append([logits, weights, *torch.autograd.grad(loss, list(each.parameters()))])
    for x, y, z in zip(*results, strict=True):
        assert_within_budget(x, y, z, magnitude=30 * max(1.0, z.abs().max().item()))


def test_the_backend_is_passed_on() -> None:
    assert make(backend="reference").decoder.attention.backend == "reference"
    with pytest.raises(ValueError, match="backend"):
        make(backend="none such")(*pairs(3))


def test_a_batch_is_its_sources_one_by_one() -> None:
    """Padding is neither read nor attended to, whatever its content."""
    model = make().double().eval()
    source, lengths, target = pairs(6)
    logits, weights = model(
        source.masked_fill(source == 0, 5), lengths, target, return_weights=True
    )
    for row, length in enumerate(lengths.tolist()):
        alone = source[row : row + 1, :length], lengths[row : row + 1], target[row : row + 1]
        wanted, each = model(*alone, return_weights=True)
        torch.testing.assert_close(logits[row : row + 1], wanted)
        torch.testing.assert_close(weights[row : row + 1, :, :length], each)
        assert (weights[row, :, length:] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, 6, dtype=F64))


def test_the_first_state_is_of_the_backward_encoder_at_the_first_word() -> None:
    """Check section A.2.2: s_0 = tanh(W_s h<-_1)."""
    model = make().double()
    source, lengths, _ = pairs(6)
    annotations, state = model.encode(source, lengths)
    backward = annotations[:, 0, SIZES["encoder_dim"] :]
    torch.testing.assert_close(state, torch.tanh(model.initial(backward)))
    assert annotations.shape == (6, 5, 2 * SIZES["encoder_dim"])


def test_searches_say_what_teacher_forcing_does() -> None:
    model = make().double()
    learn(model, 20, 16)
    model.eval()
    source, lengths, _ = pairs(6)
    found = check_searches(model, source, lengths)
    assert (found.log_probs.diff(dim=1) <= 0).all()
    penalised = model.beam_search(source, lengths, max_length=7, beams=4, length_penalty=1.0)
    wanted = penalised.log_probs / ((5 + penalised.lengths) / 6)
    torch.testing.assert_close(penalised.scores, wanted)


def test_a_checkpoint_gives_the_same_model(tmp_path: Path) -> None:
    check_checkpoint(make().eval(), make().eval(), tmp_path)


def test_dropout_in_training_only() -> None:
    check_dropout(make(dropout=0.5))


def wrong(model: RNNsearch, **changed: Any) -> Tensor:
    source, lengths, target = pairs(3)
    return model(**({"source": source, "source_lengths": lengths, "target": target} | changed))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"end must be a token in \[1, 9\), got 9"):
        make(end=9)
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got -1"):
        make(dropout=-1)
    model = make()
    source, lengths, target = pairs(3)
    with pytest.raises(TypeError, match="source must be a tensor .*, got list"):
        wrong(model, source=[[3]])
    with pytest.raises(TypeError, match="target must be int64, got torch.float32"):
        wrong(model, target=target.float())
    with pytest.raises(
        ValueError, match=r"target must have tokens in \[0, 9\), got tokens from 0 to 50"
    ):
        wrong(model, target=target.masked_fill(target == 2, 50))
    with pytest.raises(TypeError, match="source_lengths must be int64, got torch.int32"):
        wrong(model, source_lengths=lengths.int())
    with pytest.raises(
        ValueError, match=r"source_lengths must lie in \[1, 5\] .*, got values from 0 to 2"
    ):
        wrong(model, source_lengths=lengths - 1)
    with pytest.raises(
        ValueError, match=r"target must have shape \(B, T\) = \(3, \*\), got \(1, 6\)"
    ):
        wrong(model, target=target[:1])
    with pytest.raises(ValueError, match="beams must be an int of at least 1, got 0"):
        model.beam_search(source, lengths, max_length=3, beams=0)
    with pytest.raises(ValueError, match="max_length must be an int of at least 1, got 0"):
        model.greedy_search(source, lengths, max_length=0)


def test_searches_return_alignments() -> None:
    source, lengths = torch.tensor([[3, 4, 5, 6], [4, 5, 0, 0]]), torch.tensor([4, 2])
    model = RNNsearch(9, 9, embedding_dim=4, encoder_dim=3, hidden_dim=5, align_dim=4, maxout_dim=3)
    found = model.eval().beam_search(source, lengths, max_length=5, beams=3, return_alignments=True)
    assert found.alignments is not None and found.alignments.shape == (*found.tokens.shape, 4)
    assert not found.alignments[1, ..., 2:].any()
    assert model.greedy_search(source, lengths, max_length=5).alignments is None
    plain = Seq2Seq(9, 9, embedding_dim=4, hidden_dim=5, maxout_dim=3)
    with pytest.raises(ValueError, match="return_alignments must be False for Seq2Seq"):
        plain.greedy_search(source, lengths, max_length=5, return_alignments=True)
