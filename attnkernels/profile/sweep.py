"""Measure every length by every method, one row at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .. import additive_attention
from ..measure.device import Device
from ..ops.codes import PrecisionName
from .naive import naive_attention, naive_bytes
from .text import Attended
from .units import show_mib, show_ms

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

REPEAT_SECONDS = 1.0  # repeat a measurement until it has taken this long,
MOST_REPEATS = 20  # or this many times
FREE_FRACTION = 0.85  # of the free memory that a measurement may use
NO_MEMORY = "allocate memory"  # in the error of PyTorch's CPU allocator; a GPU's has its own type
WARM_UP = 32  # length of the call before the first measured one


@dataclass
class Row:
    """One method at one length: its measurement, or the reason and the estimate instead."""

    length: int
    method: str
    ms: float | None = None
    min_ms: float | None = None
    repeats: int = 0
    peak_mib: float | None = None
    g_elements_per_s: float | None = None
    elements_per_clock: float | None = None  # per SM, if the device has SMs
    skipped: str | None = None
    estimated_ms: float | None = None
    estimated_mib: float | None = None
    does_not_fit: bool = False


@dataclass
class Method:
    """A way to compute the attention, with its limits of time and memory.

    Memory limits a method that `materialises` the pairs, so that it grows with the square of the
    length. Time grows with the `pairs` of a length.
    """

    name: str
    attention: Attention
    materialises: bool
    most_seconds: float
    needed_bytes: Callable[[int], float] | None = None
    compiled: bool = False
    pairs: Callable[[int], int] = lambda length: length * length
    last: Row | None = None

    def estimate(self, row: Row) -> None:
        """Estimate the cost of `row` from the last length that was measured."""
        if self.last is not None and self.last.ms is not None:
            growth = self.pairs(row.length) / self.pairs(self.last.length)
            row.estimated_ms = self.last.ms * growth
            if self.materialises:
                row.estimated_mib = (self.last.peak_mib or 0) * growth
        if self.needed_bytes is not None:
            row.estimated_mib = self.needed_bytes(row.length) / 2**20

    def forbid(self, row: Row, free_bytes: int) -> None:
        """Mark `row` as skipped, with the reason, if its estimate exceeds a limit."""
        free = free_bytes * FREE_FRACTION / 2**20
        if (row.estimated_mib or 0) > free:
            row.does_not_fit = True
            row.skipped = f"needs {show_mib(row.estimated_mib or 0)}, does not fit"
        elif (row.estimated_ms or 0) > self.most_seconds * 1e3:
            row.skipped = f"would take about {show_ms(row.estimated_ms or 0)}"


def methods(
    dim: int,
    backward: bool,
    compiled: bool,
    backend: str,
    naive_seconds: float,
    fused_seconds: float,
    window: int | None = None,
    precision: PrecisionName = "exact",
) -> list[Method]:
    """Return the naive formula, torch.compile of it if wanted, and the fused operator.

    Each comes with the most seconds that one call of it may take. With a window, the last is the
    fused operator in that window to both sides. The precision is that of the operator.
    """
    attend = partial(additive_attention, precision=precision, backend=backend)

    def fused(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        return attend(query, key, value, weight)

    def windowed(query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        assert window is not None
        sides = (window, window)
        return attend(query, key, value, weight, window_size=sides)

    def needed(length: int) -> float:
        return naive_bytes(length * length, dim, torch.float32.itemsize, backward)

    found = [Method("naive", naive_attention, True, naive_seconds, needed)]
    if compiled:
        # The forward never builds the tensor, the backward does: its memory has to be measured.
        found.append(Method("compile", naive_attention, True, naive_seconds, compiled=True))
    materialises = backend == "reference"
    linear = partial(fused_bytes, dim=dim, backward=backward)
    limits = materialises, fused_seconds, needed if materialises else linear
    found.append(Method("fused", fused, *limits))
    if window is not None:
        found.append(
            Method("window", windowed, *limits, pairs=partial(window_pairs, window=window))
        )
    return found


def window_pairs(length: int, window: int) -> int:
    """Return the number of pairs of `length` characters that are at most `window` apart."""
    apart = min(window, length - 1)
    return length * (2 * apart + 1) - apart * (apart + 1)


def fused_bytes(length: int, dim: int, backward: bool) -> float:
    """Estimate the memory of the fused operator, from measurements of the native backend on a CPU.

    The forward pass makes the context, the backward three gradients and copies of two inputs.
    """
    return length * dim * torch.float32.itemsize * (4.25 if backward else 1.15)


def nominal_work(method: Method, length: int) -> float:
    """Return a measurement's share of the progress bar, in rough seconds."""
    seconds = method.pairs(length) / (1e8 if method.name in ("fused", "window") else 1e6)
    return 1 + seconds if seconds < method.most_seconds else 0


def sweep(
    device: Device,
    inputs: Attended,
    lengths: list[int],
    todo: list[Method],
    backward: bool,
    starting: Callable[[Method, int], None] = lambda method, length: None,
) -> Iterator[Row]:
    """Measure `todo` at `lengths` (ascending), calling `starting` before each measurement.

    `inputs` are on `device`. A method is skipped if its memory or time would exceed the limit.
    """
    for method in todo:
        if not method.compiled:
            call_of(method.attention, _cut(inputs, WARM_UP), backward)()
    for length in lengths:
        cut = _cut(inputs, length)
        for method in todo:
            starting(method, length)
            row = Row(length, method.name)
            method.estimate(row)
            method.forbid(row, device.free_memory())
            if row.skipped is None:
                try:
                    _fill(row, *_run(device, method, cut, backward), device, method, cut)
                    method.last = row
                except (MemoryError, RuntimeError) as error:
                    if not _out_of_memory(error):
                        raise
                    row.does_not_fit = True
                    row.skipped = "ran out of memory"
            yield row


def spreads(rows: list[Row]) -> list[float]:
    """Return the median over the minimum of every row that has three repeats or more."""
    return [row.ms / row.min_ms for row in rows if row.repeats >= 3 and row.ms and row.min_ms]


def _out_of_memory(error: Exception) -> bool:
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or NO_MEMORY in str(error)


def _cut(inputs: Attended, length: int) -> Attended:
    query, key, value, weight = inputs
    return Attended(query[:, :length], key[:, :length], value[:, :length], weight)


def call_of(attention: Attention, inputs: Attended, backward: bool) -> Callable[[], object]:
    """Return a call of the forward without a graph, or of both passes with a fresh graph."""
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return attention(*inputs)

        return forward
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    arriving = torch.randn(inputs.value.shape, generator=torch.Generator().manual_seed(0))
    arriving = arriving.to(inputs.value.device)

    def both() -> object:
        context = attention(*leaves)
        return context, torch.autograd.grad(context, leaves, arriving)

    return both


def _run(
    device: Device, method: Method, inputs: Attended, backward: bool
) -> tuple[list[float], int]:
    """Return the seconds of every repeat, and the peak extra bytes."""
    attention = method.attention
    if method.compiled:
        torch.compiler.reset()  # compile the best code for each shape
        attention = torch.compile(attention, dynamic=False)
    call = call_of(attention, inputs, backward)
    if method.compiled or device.warms_up:
        call()
    first = device.measure(call)
    if first.seconds >= REPEAT_SECONDS:
        return [first.seconds], first.peak_bytes
    seconds: list[float] = []  # without the first, which faulted its pages in
    while sum(seconds) < REPEAT_SECONDS and len(seconds) < MOST_REPEATS:
        seconds.append(device.seconds(call))
    return seconds, first.peak_bytes


def _fill(
    row: Row,
    seconds: list[float],
    peak_bytes: int,
    device: Device,
    method: Method,
    inputs: Attended,
) -> None:
    row.ms = statistics.median(seconds) * 1e3
    row.min_ms = min(seconds) * 1e3
    row.repeats = len(seconds)
    row.peak_mib = peak_bytes / 2**20
    elements = method.pairs(row.length) * inputs.query.shape[-1]
    rate = elements / statistics.median(seconds)
    row.g_elements_per_s = rate / 1e9
    if device.clocks_per_second is not None:
        row.elements_per_clock = rate / device.clocks_per_second
    row.estimated_ms = row.estimated_mib = None
