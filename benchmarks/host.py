"""Time what the host does for a call on a GPU: all but the launches of its kernels.

    python -m benchmarks.host [--backends triton,native] [--rounds N] [--json FILE]

No GPU is needed. Triton's kernels are compiled for sm_90, and a function that does nothing takes
the place of the launcher of each; the library is built with launches that return at once. Tensors
are on the CPU, whose allocator takes about as long as PyTorch's own for a GPU. Sizes are small,
since none of this depends on them.

The fastest of many short rounds is what the host needs; the median is what it took on this machine
with all else that ran there. One tanh of one number, in the same rounds, tells how fast the machine
is.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from attnkernels import additive_attention, prepare_keys
from attnkernels.measure import files
from attnkernels.measure.options import positive
from attnkernels.measure.wording import tolerate_any_encoding
from attnkernels.profile import tables
from benchmarks.suite import figures

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("triton", "native")
SHAPES = {"tiles": (2, 50, 50, 64), "step": (4, 1, 50, 64)}
CALLS = 20  # of a round
YARDSTICK = "tanh of one number"
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    tolerate_any_encoding()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description="Host time")
    add = parser.add_argument
    add("--backends", default=",".join(BACKENDS), metavar="NAME,...", help="default: %(default)s")
    add("--rounds", type=positive, default=500, metavar="N", help="default: %(default)s")
    add("--json", type=files.output, metavar="FILE", help="where to write the figures")
    add("--worker", choices=BACKENDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(options.backends.split(",")) - set(BACKENDS)
    if unknown:
        parser.error(f"--backends: no {', '.join(sorted(unknown))}; there are triton, native")
    if options.worker:
        print(json.dumps(measure(options.worker, options.rounds)))
        return 0
    rows = [row for name in options.backends.split(",") for row in _apart(name, options.rounds)]
    table = tables.Table("host time of a call, launches replaced", "fastest", "median")
    for row in rows:
        times = (f"{row[name]:.1f} µs" for name in ("fastest_us", "median_us"))
        table.add_row(f"{row['backend']}: {row['call']}", *times)
    tables.console().print(table)
    if options.json:
        figures.write(options.json, rows)
    return 0


def _apart(name: str, rounds: int) -> list[Row]:
    """Return the rows of a backend, measured in a process whose library launches nothing."""
    command = [sys.executable, "-m", "benchmarks.host", "--worker", name, "--rounds", str(rounds)]
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if name == "native":
        build = runpy.run_path(str(ROOT / "tests/emulator/library.py"))["build_unlaunched"]
        environ["ATTNKERNELS_LIBRARY"] = str(build())
    ran = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def measure(name: str, rounds: int) -> list[Row]:
    """Time the calls of one backend in this process."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        if name == "triton":
            stack.enter_context(triton_unlaunched())
        one = torch.ones(1)
        calls = {YARDSTICK: lambda: one.tanh()} | _calls(name)
        return [
            {"backend": name, "call": call, "fastest_us": min(times), "median_us": median}
            for call, times in _timed(calls, rounds).items()
            for median in [statistics.median(times)]
        ]


def _calls(name: str) -> dict[str, Callable[[], object]]:
    made: dict[str, Callable[[], object]] = {}
    for shape_name, (batch, n, m, d) in SHAPES.items():
        query, key, value = (torch.randn(batch, rows, d) for rows in (n, m, m))
        weight = torch.randn(d)
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [x.to(dtype) for x in (query, key, value, weight)]
            title = f"{shape_name}, {str(dtype).removeprefix('torch.')}"
            made[title] = _attention(name, *inputs)
        leaves = [x.clone().requires_grad_() for x in (query, key, value, weight)]
        made[f"{shape_name}, forward and backward"] = _both(_attention(name, *leaves), leaves)
    memory, step = prepare_keys(key, value, weight, backend=name), query
    made["prepared step, float32"] = lambda: memory.attend(step)
    return made


def _attention(name: str, *inputs: torch.Tensor) -> Callable[[], Any]:
    return lambda: additive_attention(*inputs, backend=name)


def _both(call: Callable[[], Any], leaves: list[torch.Tensor]) -> Callable[[], object]:
    ones = torch.ones_like(call())
    return lambda: torch.autograd.grad(call(), leaves, ones)


def _timed(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of a call in each round, in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compiles
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # finds the caches of the processor full of others' data
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return times


@contextmanager
def triton_unlaunched() -> Iterator[None]:
    """Let the backend take CPU tensors as those of an H100, and start no kernel."""
    from triton.runtime import driver

    from attnkernels.backends import triton
    from attnkernels.backends.triton.host import call, launch, replay
    from attnkernels.ops.schema import implement
    from tools.sass import aot

    for name in ("forward", "backward"):
        implement(f"triton_{name}", triton._implementation(name), "CPU")
    target = aot.TARGETS["sm_90"]
    here = launch.Target(target.backend, target.warp_size, aot.PROCESSORS)
    with (
        mock.patch.object(driver, "_active", _Driver(target)),
        mock.patch.object(call, "target", lambda device: here),
        mock.patch.object(replay, "target", lambda device: here),
        mock.patch.object(triton, "why_not", lambda problem: None),
    ):
        yield


class _Driver:
    """Triton's driver of a GPU on which kernels load and launches do nothing."""

    def __init__(self, target: Any) -> None:
        self.target, self.utils = target, self

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        """Return module, function, registers, spills and the most threads."""
        return 1, 1, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *_: None


if __name__ == "__main__":
    raise SystemExit(main())
