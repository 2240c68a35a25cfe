"""Predict the time of the CUDA kernels on an H100, from the launches that the host would make.

    python -m benchmarks.predict [--cases NAME,...] [--dtype float32] [--precision exact|fast]
                                 [--json FILE]
    python -m benchmarks.predict --update      # what benchmarks.gpu prints beside its times

No GPU is needed: the library is built with launches that return at once, and tells what they would
have been. A launch takes as long as its busiest processor, or as its bytes take to move:

    blocks of the busiest processor = ceil(blocks / 132)
    time = launch + max(these * instructions of a block / issue rate, bytes / bandwidth)

The issue rate grows with the warps that a processor holds: 4 w / (w + 0.6) instructions per clock
for w warps per scheduler. Instructions per element are those that `python -m tools.sass` counts.
With `--precision fast` scores are series of ten sines, which inputs of unit size need. "whole" is
the same problem without the slices of csrc/cuda/sliced.h. All of it is an estimate until
`python -m benchmarks.gpu` measures it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attnkernels import additive_attention, prepare_keys
from attnkernels.measure import files
from attnkernels.measure.wording import tolerate_any_encoding
from attnkernels.profile import tables
from benchmarks.gpu import predicted
from benchmarks.suite import cases, figures
from benchmarks.suite.cases import Case

ROOT = Path(__file__).resolve().parents[1]
PROCESSORS, CLOCK, BANDWIDTH = 132, 1.755e9, 3.35e12  # of an H100 SXM; bytes per second
SCHEDULERS, TILE = 4, 64
LAUNCH = 2e-6  # seconds from the end of a kernel to the first instructions of the next
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Instructions: per element of a score, of the sweep of a gradient, and of a step; per multiply-add
# of a product; per pair of a softmax.
SCORE, SWEEP, STEP, STEP_BACKWARD, PRODUCT, SOFTMAX = 4.0, 7.5, 9.0, 24.0, 0.7, 25.0
SINES = 10  # the first two, by sines: csrc/cuda/sines.h and sine_sweep.h
FAST_SCORE, FAST_SWEEP = 0.2 * SINES + 0.55, 0.44 * SINES + 1.7
Launch = tuple[str, int, int, int]  # the kernel, its blocks, threads, bytes of shared memory


class Size(NamedTuple):
    """The sizes that the costs of a kernel depend on."""

    batch: int
    n: int
    m: int
    d: int
    dv: int
    tiles: int  # of 64 x 64 pairs, over the batch
    width: int  # bytes of an element
    launches: dict[str, int]  # blocks by kernel
    both: bool  # the backward

    @property
    def covered(self) -> int:
        """Pairs of the tiles."""
        return self.tiles * TILE * TILE

    @property
    def pairs(self) -> int:
        return self.batch * self.n * self.m

    @property
    def slices(self) -> int:
        return self.launches.get("slices", 0) // max(self.tiles, 1)

    @property
    def inputs(self) -> int:
        return self.batch * (self.n * self.d + self.m * (self.d + self.dv)) * self.width


class Cost(NamedTuple):
    """Blocks that a processor holds; instructions of all threads, and bytes, of all blocks."""

    resident: int
    instructions: Callable[[Size], float]
    bytes: Callable[[Size], float]


def _panels(s: Size) -> float:
    return 4 * s.d * TILE * s.batch * (ceil(s.n / TILE) + ceil(s.m / TILE))


def _sums(s: Size) -> float:
    return 4 * s.batch * ((s.n + s.m) * s.d + s.m * s.dv)


def _scored(score: float, sweep: float, resident: int) -> dict[str, Cost]:
    """Return the costs of the kernels that have a form by sines; resident: of the backward."""
    return {
        "forward": Cost(
            4,
            lambda s: s.covered * (score * s.d + PRODUCT * s.dv + SOFTMAX),
            lambda s: _panels(s) + s.inputs,
        ),
        "slices": Cost(
            4,
            lambda s: s.covered * (score * s.d + s.both * PRODUCT * s.dv),
            lambda s: _panels(s) + 4 * s.pairs * s.slices,
        ),
        "backward": Cost(
            resident,
            lambda s: s.covered * ((score + sweep) * s.d + 2 * PRODUCT * s.dv + 2 * SOFTMAX),
            lambda s: 2 * _panels(s) + _sums(s) + s.inputs,
        ),
    }


COSTS = _scored(SCORE, SWEEP, 3) | {
    "clear": Cost(16, lambda s: 0, _sums),
    "prepare": Cost(8, lambda s: 5 * _panels(s), lambda s: s.inputs + _panels(s)),
    "delta": Cost(16, lambda s: 4 * s.batch * s.n * s.dv, lambda s: 8 * s.batch * s.n * s.dv),
    "combine": Cost(16, lambda s: 30 * s.batch * s.n * s.dv, lambda s: 8 * s.batch * s.n * s.dv),
    "rows": Cost(
        16,
        lambda s: s.pairs * (2 * SOFTMAX + 4 * s.slices),
        lambda s: 4 * s.pairs * (s.slices + 3),
    ),
    "context": Cost(3, lambda s: s.covered * PRODUCT * s.dv, lambda s: s.inputs),
    "ds": Cost(
        16,
        lambda s: s.pairs * (2 * SOFTMAX + 4 * s.slices) + 4 * s.batch * s.n * s.dv,
        lambda s: 4 * s.pairs * (s.slices + 3) + 8 * s.batch * s.n * s.dv,
    ),
    "gradients": Cost(
        3,
        lambda s: s.covered * (SWEEP * s.d + PRODUCT * s.dv),
        lambda s: _panels(s) + _sums(s) + 8 * s.pairs,
    ),
    "finish": Cost(16, lambda s: 5 * _sums(s), lambda s: 2 * _sums(s)),
    "step": Cost(
        2, lambda s: s.pairs * (STEP * s.d + 2 * s.dv), lambda s: s.inputs
    ),
    "step_backward": Cost(
        2, lambda s: s.pairs * (STEP_BACKWARD * s.d + 6 * s.dv), lambda s: 3 * s.inputs
    ),
}  # fmt: skip
FAST = COSTS | _scored(FAST_SCORE, FAST_SWEEP, 2)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    tolerate_any_encoding()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--cases", metavar="NAME,...", help="names and groups (default: all)")
    add("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    add("--precision", choices=("exact", "fast"), default="exact", help="default: %(default)s")
    add("--json", type=files.output, metavar="FILE", help="where to write the predictions")
    add("--update", action="store_true", help="write what benchmarks.gpu prints beside its times")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        chosen = cases.choose(options.cases) if options.cases else list(cases.CASES)
    except ValueError as error:
        parser.error(f"--cases: {error}")
    if options.worker:
        given = options.dtype, options.precision
        print(json.dumps({_title(*each): launches(*each, *given) for each in _each(chosen)}))
        return 0
    if options.update:
        files.write(predicted.FILE, json.dumps(predictions(), indent=1) + "\n")
        return 0
    found = rows(chosen, options.dtype, options.precision)
    table = tables.Table("predicted on an H100", "launches", "blocks", "fill", "time", "whole", "")
    for row in found:
        numbers = (str(row["launches"]), str(row["blocks"]), f"{row['fill']:.0%}")
        times = (f"{1e6 * row[name]:.1f} µs" for name in ("seconds", "whole_seconds"))
        gain = row["whole_seconds"] / row["seconds"]
        table.add_row(row["case"], *numbers, *times, f"{gain:.1f}x" if gain > 1.005 else "")
    tables.console().print(table)
    print("blocks: of the longest launch. fill: the share of the processors that it gives work.")
    if options.json:
        figures.write(options.json, found, dtype=options.dtype, precision=options.precision)
    return 0


def predictions() -> dict[str, dict[str, dict[str, float]]]:
    """Return the microseconds of every case, by dtype, case and direction of the benchmarks."""
    every = list(cases.CASES)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for dtype in DTYPES:
        us = {title: 1e6 * sum(each) for title, (_, each) in timed(every, dtype).items()}
        found[dtype] = {case.name: {"forward": us[_title(case, "forward")]} for case in every}
        for case in every:
            if "both" in case.directions:
                both = us[_title(case, "forward")] + us[_title(case, "backward")]
                found[dtype][case.name]["both"] = both
    return {
        dtype: {name: {way: round(x, 1) for way, x in each.items()} for name, each in of.items()}
        for dtype, of in found.items()
    }


def rows(chosen: list[Case], dtype: str, precision: str = "exact") -> list[dict[str, Any]]:
    """Return the prediction of each case and direction."""
    whole = timed(chosen, dtype, precision, "-DATTNKERNELS_UNSLICED")
    found = []
    for title, (made, each) in timed(chosen, dtype, precision).items():
        _, blocks, *_ = made[each.index(max(each))]
        found.append(
            {
                "case": title,
                "launches": len(made),
                "blocks": blocks,
                "fill": min(1.0, blocks / PROCESSORS),
                "seconds": sum(each),
                "whole_seconds": sum(whole[title][1]),
            }
        )
    return found


Timed = tuple[list[Launch], list[float]]


def timed(
    chosen: list[Case], dtype: str, precision: str = "exact", *flags: str
) -> dict[str, Timed]:
    """Return the launches and their seconds, by title, of a library built with `flags`."""
    made = _apart(chosen, dtype, precision, *flags)
    costs = FAST if precision == "fast" else COSTS
    found = {}
    for case, direction in _each(chosen):
        title = _title(case, direction)
        of = size(case, direction, made[title], DTYPES[dtype].itemsize)
        found[title] = made[title], [seconds(launch, of, costs) for launch in made[title]]
    return found


def seconds(launch: Launch, of: Size, costs: dict[str, Cost] = COSTS) -> float:
    """Return the seconds of a launch."""
    name, blocks, threads, _ = launch
    cost = costs[name]
    each = ceil(blocks / PROCESSORS)
    warps = min(each, cost.resident) * threads / 32 / SCHEDULERS
    rate = SCHEDULERS * warps / (warps + 0.6)
    issued = each * cost.instructions(of) / 32 / blocks / rate / CLOCK
    return LAUNCH + max(issued, cost.bytes(of) / BANDWIDTH)


def size(case: Case, direction: str, made: list[Launch], width: int) -> Size:
    """Return the size of a case. Of a window, the pairs are those that queries see."""
    batch, n, m, d, dv = case.shape
    seen = m if case.window is None else min(m, 2 * case.window + TILE)
    tiles = batch * ceil(n / TILE) * ceil(seen / TILE)
    blocks = {name: count for name, count, *_ in made}
    return Size(batch, n, seen, d, dv, tiles, width, blocks, direction == "backward")


def _each(chosen: list[Case]) -> list[tuple[Case, str]]:
    return [
        (case, direction)
        for case in chosen
        for direction in ("forward", "backward")
        if direction == "forward" or "both" in case.directions
    ]


def _title(case: Case, direction: str) -> str:
    return f"{case.name}, {direction}"


def _apart(chosen: list[Case], dtype: str, precision: str, *flags: str) -> dict[str, list[Launch]]:
    """Return the launches by title, in a process whose library was built with `flags`."""
    build = runpy.run_path(str(ROOT / "tests/emulator/library.py"))["build_unlaunched"]
    environ = os.environ | {"ATTNKERNELS_LIBRARY": str(build(*flags))}
    command = [sys.executable, "-m", "benchmarks.predict", "--worker", "--dtype", dtype]
    command += ["--precision", precision]
    command += ["--cases", ",".join(case.name for case in chosen)]
    ran = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def launches(case: Case, direction: str, dtype: str, precision: str) -> list[Launch]:
    """Return the launches of a call, by the library that launches nothing."""
    read = ctypes.CDLL(os.environ["ATTNKERNELS_LIBRARY"]).attnkernels_launches
    read.restype = ctypes.c_char_p
    both = direction == "backward"
    query, key, value, weight, arriving = cases.inputs(case, DTYPES[dtype], both)
    options: dict[str, Any] = {"backend": "native", "precision": precision}
    if case.prepared:
        memory = prepare_keys(key, value, weight, **options)

        def call() -> torch.Tensor:
            return memory.attend(query)
    else:
        window = None if case.window is None else (case.window, case.window)
        options |= {} if window is None else {"window_size": window}

        def call() -> torch.Tensor:
            return additive_attention(query, key, value, weight, **options)

    read()
    context = call()
    if both:
        read()
        torch.autograd.grad(context, (query, key, value, weight), arriving)
    lines = read().decode().splitlines()
    return [(name, *map(int, numbers)) for name, *numbers in map(str.split, lines)]


if __name__ == "__main__":
    raise SystemExit(main())
