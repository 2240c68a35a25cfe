"""Time the calls of a device and count their memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from attnkernels.measure.device import find
from attnkernels.measure.memory import Measured

Call = Callable[[], object]


class Meter(NamedTuple):
    """The measuring functions of a device."""

    once: Callable[[Call], Measured]  # time and peak extra memory of one run
    mean: Callable[[Call, int], float]  # seconds per run, over this many in a row
    rest: float  # seconds to wait between the turns of two libraries
    free_memory: Callable[[], int]  # bytes that a call can allocate now


@cache
def meter(device: str) -> Meter:
    """Return the meter of a device type. PyTorch calls every GPU "cuda", also AMD's."""
    there = find(device)
    if device == "cuda":
        return Meter(there.measure, _gpu_mean, 0.0, there.free_memory)
    # The OpenMP threads of a library keep spinning after its call.
    return Meter(there.measure, _cpu_mean, 20e-3, there.free_memory)


def _cpu_mean(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _gpu_mean(call: Call, repeats: int) -> float:
    """Time by events in the current stream, from the end of earlier work to the end of this."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / repeats
