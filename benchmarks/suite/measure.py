"""Time calls in rounds in which each runs once, so that noise affects all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from typing import NamedTuple

from benchmarks.suite.meters import Call, meter

BLOCK_SECONDS = 5e-3  # shorter calls are timed several at a time
SLOW_SECONDS = (
    50e-3  # a faster call first runs this often untimed: after a rest and after the data of
)
# others it takes some calls to refill the caches
FEWEST, MOST = 3, 100  # rounds
LONG_ROUND = 20.0  # seconds, from which on one round is enough


class Timing(NamedTuple):
    """The times and the peak memory of one call."""

    median_ms: float
    min_ms: float
    peak_mib: float


def interleaved(calls: dict[str, Call], seconds: float, device: str = "cpu") -> dict[str, Timing]:
    """Return the median and minimum time and the peak extra memory of calls that are warmed up.

    All rounds together should take `seconds`; there are at least FEWEST of them, unless one alone
    takes LONG_ROUND.
    """
    by = meter(device)
    measured = {name: by.once(call) for name, call in calls.items()}
    alone = {name: once.seconds for name, once in measured.items()}
    repeats = {name: max(1, math.ceil(BLOCK_SECONDS / alone[name])) for name in calls}
    for name, call in calls.items():  # one run of a short call says little
        if repeats[name] > 1:
            alone[name] = by.mean(call, repeats[name])
            repeats[name] = max(1, math.ceil(BLOCK_SECONDS / alone[name]))
    turns = {name: 2 if alone[name] < SLOW_SECONDS else 1 for name in calls}
    one_round = sum(alone[name] * repeats[name] * turns[name] for name in calls)
    fewest = FEWEST if one_round < LONG_ROUND else 1
    rounds = min(MOST, max(fewest, int(seconds / one_round))) if calls else 0

    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            time.sleep(by.rest)
            if turns[name] > 1:
                by.mean(calls[name], repeats[name])
            times[name].append(by.mean(calls[name], repeats[name]))
        order.append(order.pop(0))  # no call always follows the same neighbour
    return {
        name: Timing(statistics.median(t) * 1e3, min(t) * 1e3, measured[name].peak_bytes / 2**20)
        for name, t in times.items()
    }
