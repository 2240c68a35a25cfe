"""Measure decoders in training: each attention's fused backend beside the plain formula.

    python -m benchmarks.suite.decoders [--attention NAME,...] [--steps T] [--seconds S]
                                        [--threads N] [--json FILE]

An `AttentionRNN` runs its steps with their inputs given, forward and backward, over 32 sequences of
200 keys; inputs, memory, cell and score have 256 features. Both run interleaved in one process, at
least three times each. Where other processes take the processors, the times of the processors and
the minima say more than the medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from attnkernels.measure import files
from attnkernels.measure.busy import Others, sentence
from attnkernels.measure.options import positive, seconds
from attnkernels.measure.wording import tolerate_any_encoding
from attnkernels.nn import (
    AdditiveAttention,
    AttentionRNN,
    CoverageAttention,
    LocationSensitiveAttention,
)
from attnkernels.profile import tables
from benchmarks.suite import figures
from benchmarks.suite.measure import interleaved
from benchmarks.suite.meters import Call

BATCH, KEYS, FEATURES, STEPS = 32, 200, 256, 200
ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "additive": AdditiveAttention,
    "location": LocationSensitiveAttention,
    # a wide filter with few channels, the default of ESPnet
    "location-wide": partial(
        LocationSensitiveAttention, channels=10, kernel_size=201, cumulative=False
    ),
    "coverage": CoverageAttention,
}
BACKENDS: dict[str, str | None] = {"plain": "reference", "fused": None}


def training(name: str, backend: str | None, steps: int) -> Call:
    """Return the call that runs a decoder and computes the gradients of everything."""
    torch.manual_seed(0)
    attention = ATTENTIONS[name](FEATURES, FEATURES, FEATURES, backend=backend)
    decoder = AttentionRNN(nn.GRUCell(2 * FEATURES, FEATURES), attention)
    inputs = torch.randn(BATCH, steps, FEATURES, requires_grad=True)
    memory = torch.randn(BATCH, KEYS, FEATURES, requires_grad=True)
    leaves = [inputs, memory, *decoder.parameters()]
    arriving = torch.randn(BATCH, steps, FEATURES)
    return lambda: torch.autograd.grad(decoder(inputs, memory)[1], leaves, arriving)


def on_processors(call: Call, spent: list[float]) -> Call:
    """Return `call`, which adds the processor time of each run, in ms, to `spent`."""

    def timed() -> object:
        start = time.process_time()
        result = call()
        spent.append((time.process_time() - start) * 1e3)
        return result

    return timed


def measure(name: str, steps: int, duration: float) -> dict[str, Any]:
    """Return the times, in ms, and the peak MiB of both backends with one attention."""
    spent: dict[str, list[float]] = {each: [] for each in BACKENDS}
    calls = {
        each: on_processors(training(name, backend, steps), spent[each])
        for each, backend in BACKENDS.items()
    }
    row: dict[str, Any] = {"attention": name, "steps": steps}
    for each, timing in interleaved(calls, duration).items():
        row[each] = {
            "median_ms": timing.median_ms,
            "min_ms": timing.min_ms,
            "processor_ms": min(spent[each]),
            "peak_mib": timing.peak_mib,
        }
    return row


def _times(row: dict[str, Any], of: str) -> str:
    plain, fused = row["plain"][of], row["fused"][of]
    return f"{plain / 1e3:.2f} s / {fused / 1e3:.2f} s = {plain / fused:.1f}x"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    tolerate_any_encoding()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite.decoders", description="decoders in training"
    )
    parser.add_argument("--attention", help=f"separated by commas, of: {', '.join(ATTENTIONS)}")
    parser.add_argument("--steps", type=positive, default=STEPS, help=f"default: {STEPS}")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="a row (default: 10)")
    parser.add_argument("--threads", type=positive, default=2, help="default: 2")
    parser.add_argument(
        "--json", type=files.output, metavar="FILE", help="where to write the figures"
    )
    options = parser.parse_args(arguments)
    names = options.attention.split(",") if options.attention else list(ATTENTIONS)
    if unknown := set(names) - set(ATTENTIONS):
        parser.error(f"no attention {', '.join(sorted(unknown))}")
    try:
        files.check({"--json": options.json})
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(options.threads)
    others = Others()
    rows = [measure(name, options.steps, options.seconds) for name in names]
    table = tables.Table("plain / fused", "shortest", "on processors", "memory")
    for row in rows:
        peaks = f"{row['plain']['peak_mib']:.0f} / {row['fused']['peak_mib']:.0f} MiB"
        table.add_row(row["attention"], _times(row, "min_ms"), _times(row, "processor_ms"), peaks)
    console = tables.console()
    console.print(table)
    if busy := sentence(others.cpus(), []):
        console.print(busy)
    if options.json:
        figures.write(options.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
