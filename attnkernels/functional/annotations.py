"""Name public calls in a profile: in torch.profiler while it runs, in NVTX where requested."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch
from torch.autograd import profiler
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.cuda import nvtx

P = ParamSpec("P")
R = TypeVar("R")

SWITCH = "ATTNKERNELS_NVTX"


def _nvtx_wanted() -> bool:
    """Return True if the environment asks for NVTX ranges and this torch can make them."""
    if os.environ.get(SWITCH) != "1":
        return False
    if not torch.backends.cuda.is_built():
        warnings.warn(
            f"{SWITCH}=1 has no effect: torch {torch.__version__} is built without CUDA, and NVTX"
            " comes with it",
            stacklevel=2,
        )
        return False
    return True


NVTX = _nvtx_wanted()


def ranged(call: str, backend: str, function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` inside a range named after the public call and the backend.

    Without a profiler, `function` is called directly, since a decoder's step takes microseconds.
    Compiled code has no range: a profile shows it under the names of the operators.
    """
    # Check for Dynamo first: a trace that never reads the profiler's state stays valid when a
    # profiler starts. Check for torch.export without Dynamo last, because that is slower.
    watched = not is_dynamo_compiling() and (NVTX or profiler._is_profiler_enabled)
    if not watched or is_compiling():
        return function
    label = f"attnkernels::{call}[{backend}]"

    def within(*args: P.args, **options: P.kwargs) -> R:
        with ExitStack() as ranges:
            if profiler._is_profiler_enabled:
                ranges.enter_context(profiler.record_function(label))
            if NVTX:
                ranges.enter_context(nvtx.range(label))
            return function(*args, **options)

    return within
