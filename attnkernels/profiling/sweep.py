"""The measurements of the main job: every length by every method, one row at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import attnkernels
from attnkernels.profiling.machine import free_memory
from attnkernels.profiling.memory import Measured, measure
from attnkernels.profiling.naive import naive_attention, naive_bytes
from attnkernels.profiling.text import Attended
from attnkernels.profiling.units import show_mib, show_ms

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

REPEAT_SECONDS = 1.0  # repeat a measurement until it has taken this long,
MOST_REPEATS = 15  # or this often
FREE_FRACTION = 0.85  # of free memory that a measurement may ask for
WARM_UP = 32  # length of the call before the first measured one


@dataclass
class Row:
    """One method at one length: measured, or why not with what it would take."""

    length: int
    method: str
    ms: float | None = None
    min_ms: float | None = None
    repeats: int = 0
    peak_mib: float | None = None
    g_elements_per_s: float | None = None
    skipped: str | None = None
    estimated_ms: float | None = None
    estimated_mib: float | None = None


@dataclass
class Method:
    """A way to compute the attention. `limited`: its memory or time may forbid a length."""

    name: str
    attention: Attention
    limited: bool
    needed_bytes: Callable[[int], float] | None = None
    compiled: bool = False
    last: Row | None = None

    def estimate(self, row: Row) -> None:
        """Fill in what `row` would take: all of it grows with the square of the length."""
        if self.last is not None and self.last.ms is not None:
            growth = (row.length / self.last.length) ** 2
            row.estimated_ms = self.last.ms * growth
            row.estimated_mib = (self.last.peak_mib or 0) * growth
        if self.needed_bytes is not None:
            row.estimated_mib = self.needed_bytes(row.length) / 2**20

    def why_not(self, row: Row, most_seconds: float) -> str | None:
        """A sentence where the estimate of `row` forbids to run it."""
        if not self.limited:
            return None
        free = free_memory() * FREE_FRACTION / 2**20
        if row.estimated_mib is not None and row.estimated_mib > free:
            return f"needs {show_mib(row.estimated_mib)}, does not fit"
        if row.estimated_ms is not None and row.estimated_ms > most_seconds * 1e3:
            return f"would take about {show_ms(row.estimated_ms)}"
        return None


def methods(dim: int, backward: bool, compiled: bool, backend: str | None) -> list[Method]:
    """The naive formula, torch.compile of it where asked, and the fused operator."""

    def fused(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        return attnkernels.additive_attention(query, key, value, weight, backend=backend)

    def needed(length: int) -> float:
        return naive_bytes(length * length, dim, torch.float32.itemsize, backward)

    materialises = backend == "reference"
    found = [Method("naive", naive_attention, limited=True, needed_bytes=needed)]
    if compiled:
        # The forward never builds the tensor, the backward does: only measuring tells.
        found.append(Method("compile", naive_attention, limited=True, compiled=True))
    found.append(Method("fused", fused, materialises, needed if materialises else None))
    return found


def nominal_work(method: Method, length: int) -> float:
    """How much of the progress bar a measurement is: seconds, give or take a machine."""
    return (0.5 + length**2 * 2e-9) if method.name == "fused" else (1.0 + length**2 * 5e-7)


def sweep(
    inputs: Attended,
    lengths: list[int],
    todo: list[Method],
    backward: bool,
    most_seconds: float,
    starting: Callable[[Method, int], None] = lambda method, length: None,
) -> Iterator[Row]:
    """Measure `todo` at `lengths` (ascending), calling `starting` before each measurement.

    Limited methods are not run where memory, or `most_seconds` a call, would not allow it.
    """
    for method in todo:
        if not method.compiled:
            _call(method.attention, _cut(inputs, WARM_UP), backward)()
    for length in lengths:
        cut = _cut(inputs, length)
        for method in todo:
            starting(method, length)
            row = Row(length, method.name)
            method.estimate(row)
            row.skipped = method.why_not(row, most_seconds)
            if row.skipped is None:
                _fill(row, _run(method, cut, backward), cut)
                method.last = row
            yield row


def _cut(inputs: Attended, length: int) -> Attended:
    query, key, value, weight = inputs
    return Attended(query[:, :length], key[:, :length], value[:, :length], weight)


def _call(attention: Attention, inputs: Attended, backward: bool) -> Callable[[], object]:
    """The forward without a graph, or the forward and backward with a fresh graph each time."""
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return attention(*inputs)

        return forward
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    arriving = torch.ones_like(inputs.value)

    def both() -> object:
        context = attention(*leaves)
        return context, torch.autograd.grad(context, leaves, arriving)

    return both


def _run(method: Method, inputs: Attended, backward: bool) -> list[Measured]:
    attention = method.attention
    if method.compiled:
        torch.compiler.reset()  # a new shape each time, and the best code for each
        attention = torch.compile(attention, dynamic=False)
    call = _call(attention, inputs, backward)
    if method.compiled:
        call()
    results = [measure(call)]
    while sum(r.seconds for r in results) < REPEAT_SECONDS and len(results) < MOST_REPEATS:
        results.append(measure(call))
    return results


def _fill(row: Row, results: list[Measured], inputs: Attended) -> None:
    seconds = [result.seconds for result in results]
    row.ms = statistics.median(seconds) * 1e3
    row.min_ms = min(seconds) * 1e3
    row.repeats = len(seconds)
    row.peak_mib = statistics.median(result.peak_bytes for result in results) / 2**20
    elements = row.length**2 * inputs.query.shape[-1]
    row.g_elements_per_s = elements / statistics.median(seconds) / 1e9
    row.estimated_ms = row.estimated_mib = None
