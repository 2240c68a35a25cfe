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
    if text.startswith(_INTERRUPTED) and error.__cause__ is not None:
        raise error.__cause__
    if text.startswith(_PREFIX) and _MEMORY in text:
        raise torch.OutOfMemoryError(text.removeprefix(_PREFIX)) from None
    raise error
