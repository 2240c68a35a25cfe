"""Record what a call allocates and launches, as it happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor


class Launch(NamedTuple):
    """The compiled kernel, the number of programs, and the arguments in the kernel's order."""

    compiled: Any
    programs: int
    arguments: list[Any]


class Memory(NamedTuple):
    """New memory, and the number that fills it, if any does."""

    tensor: Tensor
    fill: float | None


class Recorder:
    """The memory and the launches of one call, in order."""

    def __init__(self) -> None:
        self.memory: list[Memory] = []
        self.launches: list[Launch] = []


_of_thread = threading.local()


def current() -> Recorder | None:
    """Return the recorder of the call that this thread is recording, or None."""
    return getattr(_of_thread, "recorder", None)


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record the calls of this thread."""
    _of_thread.recorder = made = Recorder()
    try:
        yield made
    finally:
        _of_thread.recorder = None
