"""The glimpse example: canvases, networks of similar size, scores, and an interrupted run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.examples import record, state
from torch import Tensor

from attnkernels.models.glimpse import Glimpses, RecurrentAttentionModel
from examples import glimpse_digits
from examples.digits import SIDE, split
from examples.glimpse_digits import BRIGHTNESS, DEFAULT, FULL, TINY, Canvases, cluttered


def canvases(batch: int = 300, **options: Any) -> Canvases:
    generator = torch.Generator().manual_seed(1)
    return cluttered(split()[1], batch, DEFAULT._replace(**options), generator)


def pieces(found: Canvases) -> Tensor:
    """Return (B, 8, 8), the pixels at the corners."""
    each = zip(found.images, found.corners.tolist(), strict=True)
    return torch.stack([image[0, y : y + SIDE, x : x + SIDE] for image, (y, x) in each])


def test_a_digit_is_where_its_corner_says() -> None:
    source, found = split()[1], canvases(fragments=0)
    at = pieces(found)
    assert torch.equal(found.images.sum((1, 2, 3)), at.sum((1, 2)))  # and nowhere else
    for piece, label in zip(at / BRIGHTNESS, found.labels.tolist(), strict=True):
        distance = (source.images - piece).abs().amax((1, 2))
        assert distance.min() < 1e-6 and source.labels[distance.argmin()] == label
    for places in found.corners.unbind(-1):
        assert places.unique().tolist() == list(range(DEFAULT.canvas - SIDE + 1))


def test_clutter_is_added_and_hides_nothing() -> None:
    clean, found = canvases(fragments=0), canvases(fragments=6)
    assert found.images.amax() <= BRIGHTNESS
    outside = found.images.sum((1, 2, 3)) - pieces(found).sum((1, 2))
    assert (outside > 0).double().mean() > 0.95
    share = (found.images > 0).double().mean() - (clean.images > 0).double().mean()
    assert 0.05 < share < 6 * 16 / DEFAULT.canvas**2
    source = split()[1]
    for piece, label in zip(pieces(found) / BRIGHTNESS, found.labels.tolist(), strict=True):
        under = (source.images <= piece + 1e-6).all(2).all(1)
        assert label in source.labels[under]


def test_canvases_follow_their_generator() -> None:
    assert all(torch.equal(x, y) for x, y in zip(canvases(9), canvases(9), strict=True))


@pytest.mark.parametrize("size", [DEFAULT, FULL], ids=["default", "full"])
def test_the_nets_are_of_like_size(size: glimpse_digits.Size) -> None:
    nets = glimpse_digits.nets(size, seed=0)
    counts = [glimpse_digits.parameters(net) for net in nets.values()]
    assert max(counts) < 1.02 * min(counts)
    images = torch.rand(2, 1, size.canvas, size.canvas)
    found = [net(images) for net in nets.values()]
    assert found[0].locations.shape == (2, size.glimpses, 2)
    assert found[0].logits.shape == found[1].shape == found[2].shape == (2, 10)


class Oracle(RecurrentAttentionModel):
    """A model that says the right class and looks `off` pixels below and right of the digit."""

    def __init__(self, truth: Canvases, off: float) -> None:
        super().__init__(10)
        middle = truth.corners.flip(-1) + SIDE / 2 + off
        self.there = middle / truth.images.shape[-1] * 2 - 1
        self.said = torch.nn.functional.one_hot(truth.labels, 10).float()

    def forward(self, images: Tensor, **_: Any) -> Glimpses:
        n = len(images)
        locations = torch.stack([torch.full((n, 2), 2.0), self.there[:n]], 1)
        return Glimpses(self.said[:n], locations, self.said[:n, :1], self.said[:n, :1])


def test_what_counts_as_on_the_digit() -> None:
    truth = canvases()
    for off, share in ((0, 1.0), (SIDE / 2 - 0.1, 1.0), (SIDE / 2 + 0.1, 0.0), (-4.1, 0.0)):
        found = glimpse_digits.evaluate(Oracle(truth, off), truth, "cpu")
        assert found["error"] == 0.0 and found["on_the_digit"] == [0.0, share]
    wrong = truth._replace(labels=(truth.labels + (torch.arange(300) < 30)) % 10)
    assert glimpse_digits.evaluate(Oracle(truth, 0), wrong, "cpu")["error"] == 0.1


def test_a_run_and_one_that_is_interrupted(tmp_path: Path, monkeypatch: Any) -> None:
    """A run interrupted in the first training and resumed ends as an uninterrupted one."""

    def run(name: str, *options: str) -> dict[str, Any]:
        out = str(tmp_path / name)
        assert glimpse_digits.main(["--tiny", "--seed", "3", "--out", out, *options]) == 0
        return record(tmp_path / name)

    wanted = run("whole")
    assert wanted["options"]["seed"] == "3" and wanted["size"]["steps"] == TINY.steps
    assert len((tmp_path / "whole" / "table.md").read_text().splitlines()) == 2 + 3
    assert (tmp_path / "whole" / "glimpses.png").stat().st_size > 0

    made = cluttered
    calls = 0

    def interrupting(*arguments: Any) -> Canvases:
        nonlocal calls
        calls += 1
        if calls == 3:  # the test canvases, one step, and then:
            os.kill(os.getpid(), signal.SIGINT)
        return made(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(glimpse_digits, "cluttered", interrupting)
        with pytest.raises(SystemExit) as stopped:
            run("stopped")
    assert stopped.value.code == 130
    assert run("stopped", "--resume")["models"] == wanted["models"]
    whole, parts = (state(tmp_path / name / "glimpses.pt") for name in ("whole", "stopped"))
    assert all(torch.equal(x, parts[name]) for name, x in whole.items())
