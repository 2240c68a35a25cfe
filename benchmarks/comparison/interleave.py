"""Run the jobs in turns on both commits, so that a slow moment of the machine affects both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.comparison.build import environment
from benchmarks.comparison.jobs import Job

WORKER = Path(__file__).with_name("worker.py")
SIDES = ("base", "head")
# The placement of a process's memory changes its speed for life, by some percent in tiny calls.
# Only new processes distinguish that from the commit.
PAIRS = 3
SAMPLE_SECONDS, SAMPLES = 2e-3, 5  # of a burst; shorter bursts are compared at closer moments
SLOW_SECONDS = 50e-3  # longer calls need no calls before them to fill the caches
REST_SECONDS = 5e-3  # OpenMP's threads keep spinning for a while after a call
FEWEST = 3  # turns in a pair of processes, however long they take


class WorkerError(Exception):
    """A process that times calls cannot start, or has ended."""


class Unsupported(Exception):
    """A commit cannot run a case; the message is its error."""


class Bursts(NamedTuple):
    """Seconds per call in one pair of processes: the median of each turn, for both sides."""

    base: list[float]
    head: list[float]


class Process:
    """A process that times calls of one tree."""

    def __init__(self, tree: Path, threads: int) -> None:
        self._tree = tree
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), str(tree), str(threads)],
            cwd=tree,
            env=environment(PYTHONHASHSEED="0"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def started(self) -> dict[str, Any]:
        """Wait for the package to be imported; return the process's description of itself."""
        reply = self._read()
        if "error" in reply:
            raise WorkerError(f"{self._tree} cannot be timed: {reply['error']}")
        return reply

    def ask(self, **request: Any) -> list[float]:
        """Send one request; return the seconds it answers with, or raise Unsupported."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # reading gives the better message
        reply = self._read()
        if "error" in reply:
            raise Unsupported(reply["error"])
        return reply["seconds"]

    def _read(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise WorkerError(
                f"the process of {self._tree} ended with status {self._process.wait()}"
            )
        return json.loads(line)


class Measured(NamedTuple):
    bursts: dict[Job, list[Bursts]]  # one entry for each pair of processes
    unsupported: dict[Job, dict[str, str]]  # the error of each side that cannot run the job


def measure(
    trees: dict[str, Path],
    jobs: list[Job],
    seconds: float,
    threads: int,
    progress: Callable[[str], None] = lambda job: None,
) -> Measured:
    """Time each job for about `seconds` on both trees together, in PAIRS pairs of processes."""
    found = Measured({job: [] for job in jobs}, {})
    for pair in range(PAIRS):
        order = SIDES if pair % 2 == 0 else SIDES[::-1]
        with ExitStack() as stack:
            processes = {side: stack.enter_context(Process(trees[side], threads)) for side in order}
            for process in processes.values():
                process.started()
            for job in jobs:
                if job in found.unsupported:
                    continue
                progress(f"{pair + 1}/{PAIRS} {job.label}")
                once, errors = {}, {}
                for side, process in processes.items():
                    try:
                        (once[side],) = process.ask(prepare=job._asdict())
                    except Unsupported as error:
                        errors[side] = str(error)
                if errors:
                    found.unsupported[job] = errors
                    continue
                bursts = take_turns(processes, min(once.values()), seconds / PAIRS)
                found.bursts[job].append(bursts)
    return found


def take_turns(processes: dict[str, Process], once: float, seconds: float) -> Bursts:
    """Time the prepared case, whose call takes about `once`, by turns.

    Each turn is base, head,
       head, base or the reverse, which cancels a drift and any effect of the
    pause on the first of
       two.
    """
    calls = max(1, round(SAMPLE_SECONDS / once))
    samples = max(1, min(SAMPLES, round(SAMPLES * SAMPLE_SECONDS / once)))
    warm = calls if once < SLOW_SECONDS else 0
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    until = time.perf_counter() + seconds  # a busy machine gets fewer turns, not a longer run
    turn = 0
    while turn < FEWEST or time.perf_counter() < until:
        took: dict[str, list[float]] = {side: [] for side in SIDES}
        first, second = SIDES if turn % 2 == 0 else SIDES[::-1]
        for side in (first, second, second, first):
            time.sleep(REST_SECONDS)
            took[side] += processes[side].ask(warm=warm, calls=calls, samples=samples)
        for side in SIDES:
            times[side].append(median(took[side]))
        turn += 1
    return Bursts(**times)
