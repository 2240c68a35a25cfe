"""Record what a call does, as it does it: memory, launches and operations of torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Launch(NamedTuple):
    """The compiled kernel, the number of programs, and the arguments in the kernel's order."""

    compiled: Any
    programs: int
    arguments: list[Any]


class Memory(NamedTuple):
    """New memory, and the number that fills it, if any does."""

    tensor: Tensor
    fill: float | None


class Operation(NamedTuple):
    """An operation of torch, its arguments and its result."""

    function: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    result: Any


class Recorder(TorchDispatchMode):
    """The new memory and the constants of one call; its launches and operations, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[Memory] = []
        self.constants: list[Tensor] = []  # tensors that stay where they are
        self.steps: list[Launch | Operation] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.steps.append(Operation(function, args, kwargs or {}, result))
        return result


_of_thread = threading.local()


def current() -> Recorder | None:
    """Return the recorder of the call that this thread is recording, or None."""
    return getattr(_of_thread, "recorder", None)


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record the call of this thread."""
    _of_thread.recorder = made = Recorder()
    try:
        with made:
            yield made
    finally:
        _of_thread.recorder = None
