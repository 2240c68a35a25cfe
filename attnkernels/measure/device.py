"""Devices to measure on: the protocol, and its implementation for the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from . import cuda
from .machine import cpu_name, free_memory, versions
from .memory import Measured, measure
from .wording import count

KINDS = ("cpu", "cuda")


class Device(Protocol):
    """A device that runs calls and measures them."""

    type: str  # of its tensors, as torch names it
    name: str  # for display: the model and its size
    warms_up: bool  # True if the first call of a shape is slower and must not be measured
    clocks_per_second: float | None  # summed over its SMs; None if that is not a unit here
    ceilings: Mapping[str, float]  # elements per clock per SM that each method can reach

    def facts(self) -> dict[str, Any]:
        """Return the facts to record with a measurement."""

    def free_memory(self) -> int:
        """Return the bytes that a call can allocate now."""

    def measure(self, call: Callable[[], object]) -> Measured:
        """Run `call` once; return its seconds and its peak extra bytes, including its result."""

    def seconds(self, call: Callable[[], object]) -> float:
        """Run `call` once more and return its seconds alone."""


class Cpu:
    """The CPU, with all of torch's threads."""

    type = "cpu"
    warms_up = False  # the first call differs only by its page faults
    clocks_per_second: float | None = None
    ceilings: Mapping[str, float] = {}

    def __init__(self) -> None:
        self.name = f"{cpu_name()}, {count(torch.get_num_threads(), 'thread')}"

    def facts(self) -> dict[str, Any]:
        return {"cpu": cpu_name(), "threads": torch.get_num_threads(), "versions": versions()}

    def free_memory(self) -> int:
        return free_memory()

    def measure(self, call: Callable[[], object]) -> Measured:
        return measure(call)

    def seconds(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def find(kind: str) -> Device:
    """Return the device of that kind; raise ValueError, in one sentence, if there is none."""
    if kind == "cpu":
        return Cpu()
    sentence = cuda.why_not()
    if sentence is not None:
        raise ValueError(f"--device {kind}: {sentence}")
    return cuda.Cuda()
