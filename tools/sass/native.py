"""The machine code of the kernels of csrc/cuda, for tools.sass.

Every source is compiled for every architecture of the library by the command of setup.py, to a
cubin instead of an object.
"""

from __future__ import annotations

import math
import re
import runpy
import shlex
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from build_cuda import ARCHITECTURES, Toolkit, find_toolkit, gencode
from tools.sass import loops as sass_loops
from tools.sass import native_edges
from tools.sass import report as sass_report
from tools.sass.cubin import functions, readable
from tools.sass.loops import Inner, costs, count
from tools.sass.report import Check, spilled

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc/cuda"
TARGETS = {f"sm_{name.replace('.', '')}": name for name in ARCHITECTURES}

THREAD = 32  # pairs per thread in score.h, and queries per lane in sweep.h
QUADS = ("quad", "bounded quad")
SCORES = (*QUADS, "direct")
SWEEPS = ("sweep: shared", "sweep: single", "sweep: direct")
VARIANTS = {  # the inner loops that each kernel must have
    "forward_kernel<Logistic>": SCORES,
    "scores_kernel<Logistic>": SCORES,
    "slice_kernel<Logistic>": SCORES,
    "gradients_kernel<Logistic>": SWEEPS,
    "backward_kernel<Logistic>": (*SCORES, *SWEEPS),
    **dict.fromkeys(native_edges.GATHERED, (native_edges.VARIANT,)),
}
# The maximum per element there: score.h takes 3.75, and sweep.h 7 more.
COUNTED = "sm_90a"
QUAD_ISSUED, QUAD_MUFU, BACKWARD_ISSUED = 5.0, 0.55, 12.0
# Bytes that a warp of step.cu has under way: of keys and of values, for each of three dtypes.
IN_FLIGHT, FLIGHTS = 2048, 6

ABOUT = (
    "CUDA C++: shared excludes dynamic memory, and from sm_90 on includes 1024 bytes of the system;"
    " all branches of a loop count, such as those for each dtype in a direct one. "
    + native_edges.ABOUT
)


class Build(NamedTuple):
    """A source, a target, and the command without its output."""

    target: str
    source: str
    command: list[str]


@dataclass(frozen=True)
class Row:
    """A compiled kernel."""

    target: str
    kernel: str
    source: str
    threads: int | None  # per block
    registers: int
    memory: int  # bytes of static shared memory
    spills: dict[str, int]  # by name, without zeros
    loops: list[Inner]
    flights: tuple[int, ...] = ()  # of loads, in bytes per warp


def toolkit() -> Toolkit | str:
    """Return the toolkit that compiles the kernels, or the reason why there is none."""
    return find_toolkit(_setup()["compiler"]() or [])


def _setup() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "setup.py"))


def builds(toolkit: Toolkit, targets: list[str]) -> list[Build]:
    """Return the builds of every source for the targets that nvcc knows."""
    steps = [step for step in _setup()["cuda_steps"](toolkit) if step.inputs[0].suffix == ".cu"]
    known = [name for name in targets if int(re.sub(r"\D", "", name)) in toolkit.known]
    return [
        Build(target, step.inputs[0].name, _to_cubin(step.command, TARGETS[target]))
        for step in steps
        for target in known
    ]


def _to_cubin(command: list[str], architecture: str) -> list[str]:
    """Return the command of an object, changed to make a cubin for one architecture."""
    words = iter(command)
    kept = []
    for word in words:
        if word in ("-gencode", "-MF", "-o"):
            next(words)
        elif word not in ("-c", "-MD"):
            kept.append(word)
    return [*kept, "-cubin", *gencode(architecture)]


def rows(build: Build) -> list[Row]:
    """Compile a source and return its kernels, or raise RuntimeError with the output of nvcc."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        command = [*build.command, "-o", str(cubin)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}")
        found = [(readable(symbol), each) for symbol, each in functions(cubin).items()]
    return [
        Row(
            target=build.target,
            kernel=name,
            source=build.source,
            threads=function.threads,
            registers=function.registers,
            memory=function.memory,
            spills=function.spills,
            loops=loops(name, function.code.innermost) if name in VARIANTS else [],
            flights=function.code.flights,
        )
        for name, function in found
    ]


def loops(kernel: str, innermost: list[Counter[str]]) -> list[Inner]:
    """Return the loops over elements."""
    if kernel in native_edges.GATHERED:
        return native_edges.find(kernel, innermost)
    return [loop for loop in map(classify, innermost) if loop]


def classify(loop: Counter[str]) -> Inner | None:
    """Return the costs per element of a loop, or None if it is not over elements.

    The loop of sweep.h adds to memory once per key, for 32 elements.
    """
    elements = THREAD * count(loop, "RED.", "REDG.", "ATOM.", "ATOMG.")
    if elements == 0:
        return sass_loops.classify("score", THREAD, loop)
    reciprocals, exponentials = count(loop, "MUFU.RCP"), count(loop, "MUFU.EX2")
    ways = {
        (elements * 3 // 4, 0): "shared",
        (elements, 0): "single",
        (elements, elements): "direct",
    }
    way = ways.get((reciprocals, exponentials))
    return costs(f"sweep: {way}", elements, loop) if way else None


def kernels() -> set[str]:
    """Return the kernels that the sources define, without template arguments."""
    files = [*SOURCES.glob("*.cu"), *SOURCES.glob("*.h")]
    return {name for file in files for name in defined(file.read_text(encoding="utf-8"))}


def defined(source: str) -> list[str]:
    """Return the names of its kernels, which follow the attributes that begin with __."""
    return re.findall(r"__global__[^;{]*?\b(?!__)(\w+)\s*\(", source)


def checks(target: str, found: list[Row], names: set[str]) -> list[Check]:
    """Return the assertions about the rows of a target; names: from kernels()."""
    each = [(row, loop) for row in found for loop in row.loops]
    there = {(row.kernel, loop.variant) for row, loop in each}
    made = {
        "every CUDA kernel is there": sorted(
            names - {row.kernel.partition("<")[0] for row in found}
        ),
        "no spills in a CUDA kernel": [
            f"{row.kernel}: {spilled(row.spills)}" for row in found if row.spills
        ],
        "every inner loop of CUDA kernels is there": [
            f"{kernel}: no loop is {variant}"
            for kernel, variants in VARIANTS.items()
            for variant in variants
            if (kernel, variant) not in there
        ],
        "no SHFL and no BAR in an inner loop of CUDA kernels (edges: no BAR)": [
            f"{row.kernel}, {loop.variant}: {loop.shuffles} and {loop.barriers}"
            for row, loop in each
            if loop.barriers or (loop.shuffles and loop.variant != native_edges.VARIANT)
        ],
        **native_edges.checks(found, target == COUNTED),
    }
    if target == COUNTED:
        backward = sum(_issued(each, variant) for variant in ("quad", "sweep: shared"))
        made |= {
            f"CUDA quad loops: at most {QUAD_ISSUED:g} instructions and {QUAD_MUFU} MUFU": [
                f"{row.kernel}, {loop.variant}: {loop.issued:.2f} and {loop.mufu:.2f}"
                for row, loop in each
                if loop.variant in QUADS and (loop.issued > QUAD_ISSUED or loop.mufu > QUAD_MUFU)
            ],
            f"steps in CUDA: {FLIGHTS} runs of loads of {IN_FLIGHT} bytes per warp": [
                f"{row.kernel}: {sorted(row.flights, reverse=True)[:FLIGHTS]}"
                for row in found
                if row.kernel.startswith("step_kernel")
                and sum(size >= IN_FLIGHT for size in row.flights) < FLIGHTS
            ],
            f"CUDA backward: at most {BACKWARD_ISSUED:g} instructions": (
                [f"{backward:.2f}"] if backward > BACKWARD_ISSUED else []
            ),
        }
    return [Check(target, sentence, failures) for sentence, failures in made.items()]


def _issued(each: list[tuple[Row, Inner]], variant: str) -> float:
    """Return the instructions per element of a loop of the backward."""
    mine = (loop for row, loop in each if row.kernel == "backward_kernel<Logistic>")
    return max((loop.issued for loop in mine if loop.variant == variant), default=math.inf)


def table(target: str, found: list[Row]) -> Table:
    """Return a table with one line per kernel, or per inner loop if it has several."""
    lines = (
        (
            (row.kernel, row.source, row.threads or "any", row.registers, row.memory),
            row.spills,
            row.loops,
        )
        for row in sorted(found, key=lambda row: (row.source, row.kernel))
    )
    numbers = ("threads", "registers", "shared")
    return sass_report.table(f"{target}, CUDA C++", ("kernel", "file"), numbers, lines)


def release(toolkit: Toolkit) -> str:
    """Return the release of nvcc, such as 13.0."""
    done = subprocess.run([toolkit.command[0], "--version"], capture_output=True, text=True)
    found = re.search(r"release ([\d.]+)", done.stdout)
    return found[1] if found else "unknown"
