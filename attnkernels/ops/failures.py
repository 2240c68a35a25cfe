"""Errors of the operators as Python's: out of memory, and an interrupted call."""

from __future__ import annotations

from typing import NoReturn

import torch

_PREFIX = "attnkernels: "
_MEMORY = "must fit in memory"
_INTERRUPTED = "attnkernels: interrupted"


def explain(error: RuntimeError) -> NoReturn:
    """Raise what `error`, of an operator, stands for.

    Raises:
        torch.OutOfMemoryError: a tensor did not fit, on any device; the message has its name, shape
            and bytes.
        BaseException: a signal arrived during the call, and its handler raised this, such as the
            KeyboardInterrupt of Ctrl-C.
        RuntimeError: any other `error`.
    """
    text = str(error)
    cause = error.__cause__
    if text == _INTERRUPTED and cause is not None:
        error.__cause__ = error.__context__ = None  # no cycle, which would keep the inputs alive
        raise cause from None
    if text.startswith(_PREFIX) and _MEMORY in text:
        raise torch.OutOfMemoryError(text.removeprefix(_PREFIX)) from None
    raise error
