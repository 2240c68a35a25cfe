"""Notice that other processes disturb a measurement: by their use of the CPU, and by the spread.

Both signs are needed. Other processes can slow every repeat alike: of 370 samples on two busy
cores, 42 had medians within 1.1 of their minimum, and were up to 200 times the best time. And what
disturbs a few milliseconds is not seen in the CPU time of a run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

CPU_TIMES = Path("/proc/stat")
# The columns of a CPU that count time in which this process could not run on it: user, nice,
# system, irq, softirq and steal; user includes guests.
BUSY_COLUMNS = (1, 2, 3, 6, 7, 8)
# Measured on two cores with two threads, for 50 µs to 50 ms. In 10 samples others took up to 0.08
# CPUs: medians were 1.02 to 1.56 times the best. In 835 samples others took 0.6 or more: they were
# 1.2 to 1,400 times the best, 23 times in half of them. There was nothing in between.
MOST_CPUS = 0.1  # beyond those that the threads of this process leave free
# Of the 113 medians in each of two quiet runs of the suite, 5% and 11% were more than 1.3 times
# their minimum; with others at work, 64% of those 370 samples were.
MOST_SPREAD, MOST_SHARE = 1.3, 0.25


class Others:
    """The CPU time that other processes take from the CPUs of this one, from now on."""

    def __init__(self) -> None:
        self._began, self._taken = time.perf_counter(), _taken_by_others()

    def cpus(self) -> float | None:
        """Return the CPU seconds per second, or None where the system does not count them."""
        taken = _taken_by_others()
        if taken is None or self._taken is None:
            return None
        passed = time.perf_counter() - self._began
        return max(0.0, taken - self._taken) / passed if passed else 0.0


def sentence(others: float | None, spreads: Sequence[float]) -> str | None:
    """Return a sentence if the machine was busy, otherwise None.

    Args:
        others: the result of `Others.cpus`.
        spreads: the median over the minimum of every call that was timed repeatedly.
    """
    signs = []
    cpus = _cpus()
    if others is not None and others > max(0, cpus - torch.get_num_threads()) + MOST_CPUS:
        signs.append(f"other processes took {others:.1f} of {cpus} CPUs")
    if sum(spread > MOST_SPREAD for spread in spreads) > MOST_SHARE * len(spreads):
        signs.append(f"medians are up to {max(spreads):.1f} times their minimum")
    if not signs:
        return None
    return f"The machine was busy: {' and '.join(signs)}. Measure again when it is idle."


def _cpus() -> int:
    """Return the number of CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _taken_by_others() -> float | None:
    """Return the seconds since the boot in which other processes used these CPUs."""
    try:
        mine = os.sched_getaffinity(0)
        lines = CPU_TIMES.read_text().splitlines()
    except (OSError, AttributeError):  # not Linux
        return None
    columns = [line.split() for line in lines if line.startswith("cpu")]
    busy = sum(
        int(cpu[column])
        for cpu in columns
        if cpu[0][3:].isdigit() and int(cpu[0][3:]) in mine
        for column in BUSY_COLUMNS
    )
    own = os.times()
    return busy / os.sysconf("SC_CLK_TCK") - sum(own[:4])
