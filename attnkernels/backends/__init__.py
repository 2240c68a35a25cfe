"""The ways to compute additive attention, the preferred one first."""

from __future__ import annotations

from . import native as native
from . import reference as reference
from . import triton as triton
from .base import Backend, Problem

BACKENDS: tuple[Backend, ...] = (native, triton, reference)


def select(problem: Problem, name: str | None = None) -> Backend:
    """The first backend that can do `problem`, or the one called `name`, which never falls back.

    ValueError with the reasons where there is none, and with the names where `name` is unknown.
    """
    for backend in BACKENDS:
        if (name is None or name == backend.NAME) and backend.why_not(problem) is None:
            return backend
    if name is None:
        reasons = "\n".join(f"  {each.NAME}: {each.why_not(problem)}" for each in BACKENDS)
        raise ValueError(
            f"no backend computes {problem.dtype} on {problem.device_type}, because\n{reasons}"
        )
    for backend in BACKENDS:
        if name == backend.NAME:
            raise ValueError(f"backend {name!r} cannot be used: {backend.why_not(problem)}")
    names = ", ".join(repr(each.NAME) for each in BACKENDS)
    raise ValueError(f"backend must be None or one of {names}, got {name!r}")
