"""Where a profile runs: all that differs between devices, and the CPU's answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from . import cuda
from .machine import cpu_name, free_memory, versions
from .memory import Measured, measure

KINDS = ("cpu", "cuda")


class Device(Protocol):
    """A place to run calls, and to ask what they took."""

    type: str  # where its tensors live, as torch has it
    name: str  # for people: the model, and how much of it there is
    warms_up: bool  # whether the first call of a shape takes longer, and is not to be measured
    clocks_per_second: float | None  # of all its SMs together; None where nobody counts in those
    ceilings: Mapping[str, float]  # elements a clock on an SM that a way to compute can reach

    def facts(self) -> dict[str, Any]:
        """What to write down with a measurement."""

    def free_memory(self) -> int:
        """Bytes that a call can have now."""

    def measure(self, call: Callable[[], object]) -> Measured:
        """Run `call` once: its seconds and its peak extra bytes, its result included."""

    def seconds(self, call: Callable[[], object]) -> float:
        """Run `call` once again: its seconds alone."""


class Cpu:
    type = "cpu"
    warms_up = False  # a first call is as long as any, to within what its pages cost
    clocks_per_second: float | None = None
    ceilings: Mapping[str, float] = {}

    def __init__(self) -> None:
        self.name = f"{cpu_name()}, {torch.get_num_threads()} threads"

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
    """The device of that kind that is there; ValueError, in one sentence, where there is none."""
    if kind == "cpu":
        return Cpu()
    sentence = cuda.why_not()
    if sentence is not None:
        raise ValueError(f"--device {kind}: {sentence}")
    return cuda.Cuda()
