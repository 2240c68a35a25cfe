"""Trainings in separate processes end like those in this one, and are interrupted together."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.side_by_side import side_by_side
from examples.training import Watch, train

STEPS = 30


def fit(
    folder: Path, seed: int, resume: bool, watch: Watch | None = None, signals: int = 0
) -> nn.Module:
    """Run a small training; `signals` is the number of the process interrupted half-way."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(number: int) -> float:
        if signals and number == STEPS // 2:
            os.kill(signals, signal.SIGINT)
            while watch is not None and not watch.stopped():
                pass
        loss = model(torch.randn(8, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    parts = {"model": model, "optimizer": optimizer}
    path = folder / f"{seed}.pt"
    train(str(seed), step, STEPS, parts, checkpoint=path, seed=seed, resume=resume, watch=watch)
    return model


def failing(watch: Watch) -> None:
    raise ValueError("as it should")


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [x.detach() for x in model.parameters()]


def test_they_end_as_one_after_another(tmp_path: Path) -> None:
    wanted = [parameters(fit(tmp_path / "alone", seed, resume=False)) for seed in range(3)]
    folder = tmp_path / "together"
    side_by_side({str(seed): partial(fit, folder, seed, False) for seed in range(3)}, processes=2)
    for seed, each in enumerate(wanted):
        found = torch.load(folder / f"{seed}.pt", weights_only=True)
        assert found["done"] == STEPS
        assert all(map(torch.equal, found["parts"]["model"].values(), each))


def test_interrupted_they_all_stop_and_go_on(tmp_path: Path) -> None:
    wanted = parameters(fit(tmp_path / "alone", 0, resume=False))
    folder = tmp_path / "together"
    jobs = {
        "first": partial(fit, folder, 0, False, signals=os.getpid()),
        "second": partial(fit, folder, 1, False),
    }
    with pytest.raises(SystemExit) as stopped:
        side_by_side(jobs, processes=1)
    assert stopped.value.code == 130
    assert torch.load(folder / "0.pt", weights_only=True)["done"] == STEPS // 2 + 1
    assert not (folder / "1.pt").exists()
    side_by_side({"first": partial(fit, folder, 0, True)}, processes=1)
    found = torch.load(folder / "0.pt", weights_only=True)["parts"]["model"]
    assert all(map(torch.equal, found.values(), wanted))


def test_a_training_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the training of second failed"):
        side_by_side({"second": failing}, processes=1)
