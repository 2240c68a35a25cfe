"""The caption example: canvases, the score of attention, and a run that is interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.examples import record, state
from torch import Tensor

from attnkernels.models.show_attend_tell import ShowAttendTell
from examples import caption_digits, digits
from examples.caption_digits import BEGIN, END, TINY, WORDS, ZERO


def canvases(batch: int = 200, **options: Any) -> digits.Canvases:
    generator = torch.Generator().manual_seed(1)
    return digits.scatter(digits.split()[1], batch, generator=generator, **options)


def test_the_digits_to_test_with_are_not_those_to_train_with() -> None:
    train, test = digits.split()
    assert len(train.labels) + len(test.labels) == 1797
    for each in (train, test):
        assert each.images.amin() == 0 and each.images.amax() == 1
        assert each.labels.bincount(minlength=10).min() >= 0.09 * len(each.labels)
    pairs = torch.cdist(train.images.flatten(1), test.images.flatten(1))
    assert pairs.min() > 0


def test_digits_lie_apart_and_from_left_to_right() -> None:
    found = canvases(apart=5)
    assert found.counts.unique().tolist() == [1, 2, 3, 4, 5]
    source = digits.split()[1]
    for b, n in enumerate(found.counts.tolist()):
        assert (found.labels[b, n:] == -1).all()
        corners = found.corners[b, :n].tolist()
        left = torch.zeros_like(found.images[b, 0])
        for (row, column), label in zip(corners, found.labels[b, :n].tolist(), strict=True):
            piece = found.images[b, 0, row : row + 8, column : column + 8]
            same = (source.images == piece).all(2).all(1)
            assert label in source.labels[same]
            left[row : row + 8, column : column + 8] += 1
        assert left.max() == 1, "two digits overlap"
        assert (found.images[b, 0] * (left == 0)).sum() == 0
        columns = [column for _, column in corners]
        assert all(y - x >= 5 for x, y in zip(columns, columns[1:], strict=False))


def test_canvases_follow_their_generator_and_must_be_large_enough() -> None:
    assert all(torch.equal(x, y) for x, y in zip(canvases(9), canvases(9), strict=True))
    with pytest.raises(ValueError, match="5 digits 11 pixels apart do not fit into 32 x 48"):
        canvases(9, apart=11)


def test_captions_are_the_digits_in_words() -> None:
    found = canvases(20)
    tokens, lengths = caption_digits.captions(found)
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for b, n in enumerate(found.counts.tolist()):
        assert lengths[b] == n + 2 and (tokens[b, n + 2 :] == 0).all()
        wanted = ["<begin>", *(names[x] for x in found.labels[b, :n]), "<end>"]
        assert [WORDS[token] for token in tokens[b, : n + 2]] == wanted


class Oracle:
    """A model that says the right words and attends `shift` annotations right of the digit."""

    def __init__(self, truth: digits.Canvases, shift: int) -> None:
        self.tokens = caption_digits.captions(truth)[0][:, 1:]
        inside = caption_digits.cells_of(truth).double().argmax(-1) + shift
        self.weights = torch.nn.functional.one_hot(inside, 96).float()

    def caption(self, images: Tensor, max_length: int) -> Any:
        said = self.tokens.masked_fill(self.tokens == 0, END)[:, None, :max_length]
        return type("Decoded", (), {"tokens": said})

    def __call__(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, None]:
        assert (tokens[:, 0] == BEGIN).all() and len(images) == len(self.tokens)
        weights = torch.nn.functional.pad(self.weights, (0, 0, 0, 1))
        return tokens, weights, None


def test_what_counts_as_on_the_digit() -> None:
    truth = canvases()
    cells = caption_digits.cells_of(truth)
    assert (cells.sum(-1) == 4).all()  # a side of 8 pixels has two centres, 4 pixels apart
    found = caption_digits.evaluate(Oracle(truth, 0), truth, "cpu")
    assert found["exact_by_count"] == dict.fromkeys(range(1, 6), 1.0)
    for name in ("exact", "words", "pointed", "mass"):
        assert found[name] == 1.0
    beside = caption_digits.evaluate(Oracle(truth, 2), truth, "cpu")
    assert beside["exact"] == 1.0 and beside["pointed"] == beside["mass"] == 0.0
    wrong = Oracle(truth, 0)
    wrong.tokens[:, 0] = torch.where(wrong.tokens[:, 0] == ZERO, ZERO + 1, ZERO)
    found = caption_digits.evaluate(wrong, truth, "cpu")
    assert found["exact"] == 0.0
    share = 1 - 200 / int(truth.counts.sum())
    assert found["words"] == pytest.approx(share) and found["pointed"] == 1.0


def test_a_run_and_one_that_is_interrupted(tmp_path: Path, monkeypatch: Any) -> None:
    """A run interrupted in the second training and resumed ends as an uninterrupted one."""

    def run(name: str, *options: str) -> dict[str, Any]:
        assert caption_digits.main(["--tiny", "--out", str(tmp_path / name), *options]) == 0
        return record(tmp_path / name)

    wanted = run("whole")
    assert wanted["options"]["seed"] == "0" and wanted["size"]["steps"] == TINY.steps
    for name in ("table.md", "soft.png", "hard.png"):
        assert (tmp_path / "whole" / name).stat().st_size > 0

    loss, calls = ShowAttendTell.loss, []

    def interrupted(*inputs: Any) -> Tensor:
        calls.append(1)
        if len(calls) == TINY.steps + 2:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*inputs)

    monkeypatch.setattr(ShowAttendTell, "loss", interrupted)
    with pytest.raises(SystemExit) as left:
        run("parts")
    assert left.value.code == 130
    resumed = run("parts", "--resume")
    assert len(calls) == 2 * TINY.steps
    assert resumed["models"] == wanted["models"]
    whole, parts = (state(tmp_path / name / "hard.pt") for name in ("whole", "parts"))
    assert all(torch.equal(x, parts[name]) for name, x in whole.items())
