"""The shared parts of the examples: a loop that resumes, options, and the written results."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from attnkernels.info import versions
from examples import (
    caption_digits,
    char_cost,
    g2p,
    glimpse_digits,
    options,
    results,
    training,
)

STEPS, AT = 9, 4


class Run:
    """A training with random data, random dropout and a random start."""

    def __init__(self, start: int) -> None:
        torch.manual_seed(start)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.05)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        self.taken: list[int] = []

    def step(self, number: int) -> float:
        self.taken.append(number)
        x = torch.randn(16, 5)
        loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def train(
        self, folder: Path, step: Callable[[int], float] | None = None, resume: bool = False
    ) -> float:
        return training.train(
            "training",
            step or self.step,
            STEPS,
            self.parts,
            checkpoint=folder / "deep" / "run.pt",
            seed=7,
            resume=resume,
        )

    def interrupted(self, times: int = 1) -> Callable[[int], float]:
        """Return `step` with Ctrl-C in the middle of step `AT`."""

        def step(number: int) -> float:
            if number == AT:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return self.step(number)

        return step

    def state(self) -> dict[str, Any]:
        """Return everything that the end of a training depends on, including torch's generator."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return {**states, "random": torch.get_rng_state()}


def same(found: Any, wanted: Any) -> bool:
    """Return True if two nests of dicts, lists and tensors are equal bit for bit."""
    if isinstance(wanted, torch.Tensor):
        return torch.equal(found, wanted)
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[k], wanted[k]) for k in wanted)
    if isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found == wanted


@pytest.fixture
def uninterrupted(tmp_path: Path) -> dict[str, Any]:
    """Return the final state of an uninterrupted run."""
    run = Run(start=1)
    run.train(tmp_path / "uninterrupted")
    assert run.taken == list(range(STEPS))
    return run.state()


def test_an_interrupted_run_ends_as_one_that_was_not(
    tmp_path: Path, uninterrupted: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    run = Run(start=1)
    with pytest.raises(SystemExit) as stopped:
        run.train(tmp_path, run.interrupted())
    assert stopped.value.code == 130 and run.taken == list(range(AT + 1))
    assert f"interrupted after step {AT + 1} of {STEPS}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    assert not same(run.state(), uninterrupted)

    again = Run(start=2)  # elsewhere, and every generator has advanced
    torch.randn(100)
    again.train(tmp_path, resume=True)
    assert again.taken == list(range(AT + 1, STEPS))
    assert same(again.state(), uninterrupted)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_interruption_does_not_wait(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run = Run(start=1)
    with pytest.raises(KeyboardInterrupt):
        run.train(tmp_path, run.interrupted(times=2))
    assert run.taken == list(range(AT)) and signal.getsignal(signal.SIGINT) is before


def test_a_run_that_dies_goes_on_from_its_last_checkpoint(
    tmp_path: Path, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    run = Run(start=1)

    def step(number: int) -> float:
        if number == AT:
            raise RuntimeError("out of power")
        return run.step(number)

    with pytest.raises(RuntimeError, match="out of power"):
        run.train(tmp_path, step)
    again = Run(start=2)
    again.train(tmp_path, resume=True)
    assert again.taken == list(range(AT, STEPS))
    assert same(again.state(), uninterrupted)


def test_a_finished_checkpoint_does_nothing(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    file = tmp_path / "uninterrupted" / "deep" / "run.pt"
    run = Run(start=2)
    seconds = run.train(tmp_path / "uninterrupted", resume=True)
    assert run.taken == [] and same(run.state(), uninterrupted)
    kept = torch.load(file, weights_only=True)
    assert kept["done"] == STEPS and 0 < kept["seconds"] <= seconds
    assert [each.name for each in file.parent.iterdir()] == [file.name]  # no partial checkpoint


def test_without_resume_it_begins_anew(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    run = Run(start=1)
    run.train(tmp_path / "uninterrupted")
    assert run.taken == list(range(STEPS)) and same(run.state(), uninterrupted)
    other = Run(start=1)
    other.train(tmp_path / "none", resume=True)  # without a checkpoint it starts from the beginning
    assert same(other.state(), uninterrupted)


def test_options_are_those_of_every_example(capsys: pytest.CaptureFixture[str]) -> None:
    parser = options.parser("name", "what it does")
    found = parser.parse_args([])
    assert found.out == Path("build/examples/name")
    assert (found.seed, found.device) == (0, "cpu")
    assert not (found.resume or found.full or found.tiny)
    found = parser.parse_args("--out x --seed 3 --device cuda --resume --tiny".split())
    assert (found.out, found.seed, found.device) == (Path("x"), 3, "cuda")
    assert found.resume and found.tiny
    with pytest.raises(SystemExit):
        parser.parse_args(["--tiny", "--full"])
    assert "not allowed with" in capsys.readouterr().err
    assert parser.format_usage().startswith("usage: python -m examples.name")


def test_the_writer_writes_what_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    out = tmp_path / "a" / "b"
    results.write(
        out,
        options={"seed": 3, "out": out},
        columns=["model", "BLEU"],
        rows=[["RNNsearch", "28.45"], ["RNNencdec", "17.82"]],
        figures={"line": figure},
        record={"bleu": {"RNNsearch": 28.45}},
    )
    assert sorted(file.name for file in out.iterdir()) == ["line.png", "results.json", "table.md"]
    assert (out / "table.md").read_text().splitlines() == [
        "| model | BLEU |",
        "|---|---|",
        "| RNNsearch | 28.45 |",
        "| RNNencdec | 17.82 |",
    ]
    assert (out / "line.png").read_bytes().startswith(b"\x89PNG\r\n")
    kept = json.loads((out / "results.json").read_text())
    assert kept["bleu"] == {"RNNsearch": 28.45}
    assert kept["options"] == {"seed": "3", "out": str(out)}
    assert kept["versions"] == versions() and {"date", "commit"} <= kept.keys()
    printed = capsys.readouterr().out
    assert "RNNencdec" in printed and "17.82" in printed


@pytest.mark.parametrize("example", [caption_digits, char_cost, g2p, glimpse_digits])
def test_an_interruption_outside_of_a_training_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], example: Any
) -> None:
    def interrupting(*arguments: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "parser", interrupting)
    assert example.main([]) == 130
    assert capsys.readouterr().out.startswith("Interrupted. The same command with --resume")


def test_interrupted_while_it_draws_it_keeps_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupting(*arguments: Any) -> None:
        raise KeyboardInterrupt

    out = ["--tiny", "--out", str(tmp_path)]
    with monkeypatch.context() as patched:
        patched.setattr(caption_digits, "picture", interrupting)
        assert caption_digits.main(out) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["soft.pt"]
    before = (tmp_path / "soft.pt").stat().st_mtime_ns

    def untrained(*arguments: Any) -> float:
        raise AssertionError("a finished training has no step left")

    with monkeypatch.context() as patched:
        patched.setattr(training, "descend", untrained)
        patched.setattr(caption_digits, "picture", interrupting)
        assert caption_digits.main([*out, "--resume"]) == 130
    assert (tmp_path / "soft.pt").stat().st_mtime_ns >= before
