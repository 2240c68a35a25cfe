"""The training loop of the examples: progress, checkpoints, interruption and resumption."""

from __future__ import annotations

import io
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attnkernels.extras import needs
from attnkernels.measure.files import write

with needs("examples"):
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

INTERRUPTED = 130  # the status that a shell reports after SIGINT
SECONDS_BETWEEN_CHECKPOINTS = 60.0


class Stateful(Protocol):
    """A stateful part of a checkpoint: a module, an optimizer or a schedule."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Watch(Protocol):
    """An observer of a training: it is shown the progress and may request a stop."""

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

    If a step draws its random numbers from torch's default generator, or from one that it seeds
    with the number of the step, a run that is interrupted and resumed ends as an uninterrupted one.
    On interruption, the current step finishes, the checkpoint is written, and the program exits.

    Args:
        label: label of the progress bar.
        step: trains one batch.
        steps: number of steps.
        parts: everything that training changes.
        checkpoint: the file, written every minute and at the end.
        seed: seed of torch's default generator, set before the first step.
        resume: continue from the checkpoint if there is one; after the last step nothing is done.
        watch: shows the progress and interrupts; by default a progress bar and SIGINT.

    Returns:
        The seconds of all steps, including those before an interruption.

    Raises:
        SystemExit: with code 130, if interrupted.
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
                "The same command with --resume continues."
            )
            raise SystemExit(INTERRUPTED)
    return seconds


def descend(
    loss: Tensor, model: nn.Module, optimizer: Any, schedule: Any, *, largest: float = math.inf
) -> float:
    """Take one step of the optimizer and of its schedule, and return the loss.

    Args:
        loss: of the model, a scalar.
        largest: the norm to which gradients are clipped.
    """
    optimizer.zero_grad()
    loss.backward()
    if largest < math.inf:
        nn.utils.clip_grad_norm_(model.parameters(), largest)
    optimizer.step()
    schedule.step()
    return loss.item()


def _save(path: Path, parts: Mapping[str, Stateful], done: int, seconds: float) -> None:
    state = {
        "done": done,
        "seconds": seconds,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    saved = io.BytesIO()
    torch.save(state, saved)
    write(path, saved.getvalue())


def _load(path: Path, parts: Mapping[str, Stateful]) -> tuple[int, float]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["random"])
    if torch.cuda.is_available() and state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return state["done"], state["seconds"]


class _Terminal:
    """A progress bar of one training, which SIGINT interrupts."""

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
    """Show the progress of a training."""
    text = "" if loss is None else f"loss {loss:.4f}"
    bar.update(task, completed=done, total=steps, loss=text)


def interruptible(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Let Ctrl-C end `main` with a sentence and status 130, also while it evaluates or draws."""

    @wraps(main)
    def run(arguments: list[str] | None = None) -> int:
        try:
            return main(arguments)
        except KeyboardInterrupt:
            print("Interrupted. The same command with --resume continues.")
            return INTERRUPTED

    return run


@contextmanager
def interruption() -> Iterator[list[int]]:
    """Yield a list that the first SIGINT fills; a second one has its usual effect."""
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
    """Return a progress bar with the loss and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
