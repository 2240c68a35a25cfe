"""The loop of the examples: progress, checkpoints, interruption, and going on where it stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from attnkernels.extras import needs

with needs("examples"):
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

INTERRUPTED = 130  # as a shell reports SIGINT
SECONDS_BETWEEN_CHECKPOINTS = 60.0


class Stateful(Protocol):
    """A module, an optimizer, a schedule: what a checkpoint keeps."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Watch(Protocol):
    """Who looks at a training: is shown where it is, and may ask it to stop."""

    def show(self, done: int, steps: int, loss: float | None) -> None: ...

    def stopped(self) -> bool: ...


def train(
    label: str,
    step: Callable[[int], float],
    steps: int,
    parts: Mapping[str, Stateful],
    *,
    checkpoint: Path,
    seed: int,
    resume: bool,
    watch: Watch | None = None,
) -> float:
    """Call ``step(0)``, ..., ``step(steps - 1)``, each of which trains once and returns its loss.

    A step takes what is random from torch's default generator, or from one that it seeds by the
    number of the step; then a run that was interrupted and resumed ends as one that was not.
    Interrupted, it finishes the step, writes the checkpoint and leaves the program.

    Args:
        label: what the progress bar is called.
        step: the training of one batch.
        steps: how many.
        parts: all that changes in training.
        checkpoint: the file that is written, every minute and at the end.
        seed: of torch's default generator, set before the first step.
        resume: go on from the checkpoint, if there is one; at the last step nothing is done.
        watch: who shows the progress and interrupts; by default a progress bar, and SIGINT.

    Returns:
        The seconds that all steps took, those before an interruption included.

    Raises:
        SystemExit: interrupted; its code is 130.
    """
    torch.manual_seed(seed)
    done, seconds = 0, 0.0
    if resume and checkpoint.exists():
        done, seconds = _load(checkpoint, parts)
    began = time.perf_counter() - seconds
    saved = time.perf_counter()
    with nullcontext(watch) if watch else _terminal(label) as watch:
        mean = None
        watch.show(done, steps, mean)
        while done < steps and not watch.stopped():
            loss = step(done)
            done += 1
            mean = loss if mean is None else 0.98 * mean + 0.02 * loss
            watch.show(done, steps, mean)
            if time.perf_counter() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                _save(checkpoint, parts, done, time.perf_counter() - began)
                saved = time.perf_counter()
        seconds = time.perf_counter() - began
        _save(checkpoint, parts, done, seconds)
        if watch.stopped():
            print(
                f"{label}: interrupted after step {done} of {steps}. "
                "The same command with --resume goes on."
            )
            raise SystemExit(INTERRUPTED)
    return seconds


def _save(path: Path, parts: Mapping[str, Stateful], done: int, seconds: float) -> None:
    state = {
        "done": done,
        "seconds": seconds,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    torch.save(state, new)
    os.replace(new, path)  # whole or not at all


def _load(path: Path, parts: Mapping[str, Stateful]) -> tuple[int, float]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["random"])
    if torch.cuda.is_available() and state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return state["done"], state["seconds"]


class _Terminal:
    """A bar of one training, which SIGINT interrupts."""

    def __init__(self, bar: Progress, label: str, interrupted: list[int]) -> None:
        self.bar, self.interrupted = bar, interrupted
        self.task = bar.add_task(label, loss="")

    def show(self, done: int, steps: int, loss: float | None) -> None:
        advance(self.bar, self.task, done, steps, loss)

    def stopped(self) -> bool:
        return bool(self.interrupted)


@contextmanager
def _terminal(label: str) -> Iterator[Watch]:
    with interruption() as interrupted, progress() as bar:
        yield _Terminal(bar, label, interrupted)


def advance(bar: Progress, task: Any, done: int, steps: int, loss: float | None) -> None:
    """Show where a training is."""
    text = "" if loss is None else f"loss {loss:.4f}"
    bar.update(task, completed=done, total=steps, loss=text)


@contextmanager
def interruption() -> Iterator[list[int]]:
    """A list that a first SIGINT fills; a second one acts as ever."""
    received: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def progress() -> Progress:
    """A bar with loss and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
