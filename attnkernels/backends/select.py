"""Choose a backend by device, dtype and size, never by values."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, is_grad_enabled
from torch.compiler import is_dynamo_compiling, is_exporting
from torch.onnx import is_in_onnx_export

from ..ops.codes import STEP_QUERIES
from . import native as native
from . import reference as reference
from . import triton as triton
from .base import Backend, Problem

BACKENDS: tuple[Backend, ...] = (native, triton, reference)
TRITON_FIRST = (triton, *(backend for backend in BACKENDS if backend is not triton))


class Preference(NamedTuple):
    """An order of backends, and the measurement behind it."""

    order: tuple[Backend, ...]
    measured: str


# Two backends have kernels for a GPU. The order depends on the direction (training: some input
# requires a gradient) and on the size. `python -m benchmarks.gpu` measures what belongs here. Until
# it has, a step goes to the backend whose calls cost the host less: `python -m benchmarks.host`.
ON_GPU = {
    ("inference", "step"): Preference(BACKENDS, "not measured yet"),
    ("inference", "tiles"): Preference(TRITON_FIRST, "not measured yet"),
    ("training", "step"): Preference(BACKENDS, "not measured yet"),
    ("training", "tiles"): Preference(TRITON_FIRST, "not measured yet"),
}


def select(
    problem: Problem,
    name: str | None = None,
    tensors: tuple[Tensor, ...] = (),
    step: bool | None = None,
) -> Backend:
    """Return the first backend that can compute `problem`, or the one called `name`.

    Args:
        problem: the device type and dtype of the call.
        name: the name of a backend, which never falls back; None for the fastest that can.
        tensors: the query first, then the other inputs that may require a gradient.
        step: True for a decoder's step, False for tiles; by default, the query's rows decide.

    `tensors` and `step` matter on a GPU only, and values never do. torch.onnx.export always gets
    the reference, since ONNX has its operations and no others.

    Raises:
        ValueError: no backend can compute it (the message has every backend's reason), the named
            one cannot, or no backend has that name.
    """
    if name is None:
        if is_exporting() and is_in_onnx_export():
            return reference
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
                return reference if is_exporting() and is_in_onnx_export() else backend
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
        # A comparison would bind a trace to its outcome, and fail if n is computed inside the
        # trace: a number that the trace leaves open counts as large.
        tracing = is_dynamo_compiling() or type(n) is not int
        step = _is_known_to_be_few(n) if tracing else n <= STEP_QUERIES
    return ON_GPU[direction, "step" if step else "tiles"].order


def _is_known_to_be_few(n: int) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # loads sympy

    return statically_known_true(n <= STEP_QUERIES)
