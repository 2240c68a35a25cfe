"""Several small trainings at a time: a processor is busier with two than with threads for one."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from examples.training import INTERRUPTED, Watch, advance, interruption, progress

SECONDS_BETWEEN_REPORTS = 0.2
Job = Callable[[Watch], Any]  # picklable: a function of a module, or `functools.partial` of one


def side_by_side(jobs: Mapping[str, Job], processes: int) -> None:
    """Run trainings in processes of their own, each with its share of the threads.

    What a job trains is in its checkpoint afterwards: `train` with ``resume`` reads it from there.

    Args:
        jobs: names for the bar to jobs, which hand the watch on to `train`; the longest first.
        processes: how many run at a time.

    Raises:
        SystemExit: interrupted by SIGINT, when all have written their checkpoints; its code is 130.
        RuntimeError: a job failed; the others are interrupted first.
    """
    context = get_context("spawn")
    threads = max(1, torch.get_num_threads() // processes)
    stop, waiting, failed = context.Event(), list(jobs.items()), []
    running: dict[Connection, tuple[str, Any]] = {}
    with interruption() as interrupted, progress() as bar:
        tasks = {name: bar.add_task(name, start=False, total=None, loss="") for name in jobs}
        while running or waiting:
            if interrupted or failed:
                stop.set()
                waiting.clear()
            while waiting and len(running) < processes:
                name, job = waiting.pop(0)
                end, other = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(job, threads, other, stop))
                process.start()
                other.close()
                running[end] = name, process
                bar.start_task(tasks[name])
            for end in wait(list(running), SECONDS_BETWEEN_REPORTS):
                name, process = running[end]
                try:
                    advance(bar, tasks[name], *end.recv())
                except EOFError:
                    del running[end]
                    process.join()
                    failed += [name] if process.exitcode not in (0, INTERRUPTED) else []
    if failed:
        raise RuntimeError(f"the training of {' and '.join(failed)} failed, as said above")
    if interrupted:
        raise SystemExit(INTERRUPTED)


class _Remote:
    """Shows the progress to the process that has the bar, and stops when that says so."""

    def __init__(self, connection: Connection, stop: Any) -> None:
        self.connection, self.stop, self.last = connection, stop, 0.0

    def show(self, done: int, steps: int, loss: float | None) -> None:
        now = time.perf_counter()
        if done == steps or now - self.last > SECONDS_BETWEEN_REPORTS:
            self.connection.send((done, steps, loss))
            self.last = now

    def stopped(self) -> bool:
        return self.stop.is_set()


def _run(job: Job, threads: int, connection: Connection, stop: Any) -> None:
    """What a process does. A terminal sends SIGINT to all of them, and one has to tell the rest."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    job(_Remote(connection, stop))
