"""The choice of a backend: by device, dtype and size, never by a value."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, is_grad_enabled
from torch.compiler import is_dynamo_compiling

from ..ops.codes import STEP_QUERIES
from . import native as native
from . import reference as reference
from . import triton as triton
from .base import Backend, Problem

BACKENDS: tuple[Backend, ...] = (native, triton, reference)
TRITON_FIRST: tuple[Backend, ...] = (triton, native, reference)


class Preference(NamedTuple):
    """The order in which backends are asked, and the measurement that says so."""

    order: tuple[Backend, ...]
    measured: str


# On a GPU, where two backends have kernels: by direction (training: a gradient may be asked for)
# and size. `python -m benchmarks.gpu` measures both in one run and sums up what belongs here.
ON_GPU = {
    ("inference", "step"): Preference(TRITON_FIRST, "not measured yet"),
    ("inference", "tiles"): Preference(TRITON_FIRST, "not measured yet"),
    ("training", "step"): Preference(TRITON_FIRST, "not measured yet"),
    ("training", "tiles"): Preference(TRITON_FIRST, "not measured yet"),
}


def select(
    problem: Problem,
    name: str | None = None,
    tensors: tuple[Tensor, ...] = (),
    step: bool | None = None,
) -> Backend:
    """The first backend that can do `problem`, or the one called `name`, which never falls back.

    `tensors` are the query and what else may want a gradient; `step` says whether the call is one
    where the query's rows do not. Only the choice on a GPU looks at them, and never at values.

    ValueError with the reasons where there is none, and with the names where `name` is unknown.
    """
    if name is None:
        order = _fastest_first(tensors, step) if problem.device_type == "cuda" else BACKENDS
        for backend in order:
            if backend.why_not(problem) is None:
                return backend
        reasons = "\n".join(f"  {each.NAME}: {each.why_not(problem)}" for each in BACKENDS)
        raise ValueError(
            f"no backend computes {problem.dtype} on {problem.device_type}, because\n{reasons}"
        )
    for backend in BACKENDS:
        if name == backend.NAME:
            sentence = backend.why_not(problem)
            if sentence is None:
                return backend
            raise ValueError(f"backend {name!r} cannot be used: {sentence}")
    names = ", ".join(repr(each.NAME) for each in BACKENDS)
    raise ValueError(f"backend must be None or one of {names}, got {name!r}")


def _fastest_first(tensors: tuple[Tensor, ...], step: bool | None) -> tuple[Backend, ...]:
    direction = "inference"
    if is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                direction = "training"
                break
    if step is None and tensors:
        n = tensors[0].shape[-2]
        # A comparison would bind a trace to its outcome, and fail where n is made inside it: a
        # number that a trace leaves open counts as many.
        tracing = is_dynamo_compiling() or type(n) is not int
        step = _is_known_to_be_few(n) if tracing else n <= STEP_QUERIES
    return ON_GPU[direction, "step" if step else "tiles"].order


def _is_known_to_be_few(n: int) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # loads sympy

    return statically_known_true(n <= STEP_QUERIES)
