"""Run several small trainings at a time, which uses a processor better than threads within one."""

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
Job = Callable[[Watch], Any]  # must be picklable: a module's function, or functools.partial of one


def side_by_side(jobs: Mapping[str, Job], processes: int) -> None:
    """Run each training in its own process, with its share of the threads.

    Afterwards the trained parts are in the checkpoint of the job, and `train` with ``resume`` reads
    them.

    Args:
        jobs: maps names for the progress bar to jobs, which pass the watch on to `train`; list the
            longest first.
        processes: number of jobs that run at a time.

    Raises:
        SystemExit: with code 130, after SIGINT and once all jobs have written their checkpoints.
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
        raise RuntimeError(f"the training of {' and '.join(failed)} failed, as shown above")
    if interrupted:
        raise SystemExit(INTERRUPTED)


class _Remote:
    """A watch that reports to the process with the progress bar, and stops on its request."""

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
    """Run a job. A terminal sends SIGINT to every process; the parent alone decides to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    job(_Remote(connection, stop))
