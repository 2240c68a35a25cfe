"""Run the cases of one backend in this process, from where the last run stopped."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .case import Case
from .check import check
from .draw import draw
from .progress import Progress, Ratios

HANGS = 900.0  # seconds after which a case counts as hanging, and ends the process
_SAVE_EVERY = 2.0  # seconds
_SAME_SIGNAL = 1.0  # seconds: a terminal and the parent may both send it


def soak(backend: str, *, seed: int, cases: int, folder: Path) -> tuple[Progress, bool]:
    """Run cases up to number `cases` (exclusive) or an interrupt; return True for the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress.load(folder, backend, seed)
    saved = start = time.monotonic()
    before = progress.seconds
    with _interrupts() as interrupted, progress.running.open("w") as running:
        try:
            while progress.next < cases and not interrupted:
                _run_next(progress, running.fileno())
                now = time.monotonic()
                progress.seconds = before + now - start
                if now - saved > _SAVE_EVERY:
                    saved = now
                    progress.save()
        finally:
            faulthandler.cancel_dump_traceback_later()
            progress.save()
    progress.running.unlink()
    return progress, bool(interrupted)


def try_case(case: Case) -> tuple[Ratios | None, str | None]:
    """Run one case; return its ratios, or the message of its failure."""
    try:
        return check(case), None
    except AssertionError as error:
        return None, " ".join(str(error).split())
    except Exception as error:
        return None, " ".join(f"{type(error).__name__}: {error}".split())


def _run_next(progress: Progress, running: int) -> None:
    number = progress.next
    os.ftruncate(running, os.pwrite(running, f"{progress.seed} {number}".encode(), 0))
    case = draw(progress.seed, number, progress.backend)
    ratios: Ratios | None = None
    message: str | None = "the process ended during this case: it crashed, hung or was killed"
    if number not in progress.ended_in:
        faulthandler.dump_traceback_later(HANGS, exit=True, file=sys.__stderr__)
        ratios, message = try_case(case)
    progress.record(case, ratios, message)
    if message is not None:
        print(f"FAILED {case.command}: {message}", flush=True)


@contextmanager
def _interrupts() -> Iterator[list[float]]:
    """Collect SIGINT and SIGTERM, so that the case being run ends; a second one raises."""
    seen: list[float] = []

    def handle(number: int, frame: object) -> None:
        if seen and time.monotonic() - seen[0] > _SAME_SIGNAL:
            raise KeyboardInterrupt
        seen.append(time.monotonic())
        print("finishing this case; once more to stop at once", file=sys.stderr, flush=True)

    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
