"""What the kernels of csrc/cuda are compiled to: tools.sass shows it.

Every source is compiled for every architecture that there are kernels for in the library, by the
command of setup.py, and to code that is read instead of an object.
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
from tools.sass import report as sass_report
from tools.sass.cubin import functions, readable
from tools.sass.loops import Inner, costs, count
from tools.sass.report import Check, spilled

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc/cuda"
TARGETS = {f"sm_{name.replace('.', '')}": name for name in ARCHITECTURES}

THREAD = 32  # pairs of a thread in score.h, and queries of a lane in sweep.h
QUADS = ("quad", "bounded quad")
SCORES = (*QUADS, "direct")
SWEEPS = ("sweep: shared", "sweep: single", "sweep: direct")
VARIANTS = {  # the inner loops that there must be
    "forward_kernel<Logistic>": SCORES,
    "scores_kernel<Logistic>": SCORES,
    "backward_kernel<Logistic>": (*SCORES, *SWEEPS),
}
# What an element may cost there: by score.h the forward takes 3.75, by sweep.h the rest 7 more.
COUNTED = "sm_90a"
QUAD_ISSUED, QUAD_MUFU, BACKWARD_ISSUED = 5.0, 0.55, 12.0

ABOUT = (
    "CUDA C++: shared is without what a launch asks for, and from sm_90 on with 1024 bytes of the"
    " system's; all branches of a loop count, such as those of a direct one for each dtype."
)


class Build(NamedTuple):
    """A source to compile for a target, and the command, which lacks its output."""

    target: str
    source: str
    command: list[str]


@dataclass(frozen=True)
class Row:
    """A kernel as it was compiled."""

    target: str
    kernel: str
    source: str
    threads: int | None  # of a block
    registers: int
    memory: int  # bytes of shared memory, without those that a launch asks for
    spills: dict[str, int]  # by name, those that there are
    loops: list[Inner]


def toolkit() -> Toolkit | str:
    """What compiles the kernels; or why nothing does."""
    return find_toolkit(_setup()["compiler"]() or [])


def _setup() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "setup.py"))


def builds(toolkit: Toolkit, targets: list[str]) -> list[Build]:
    """Of every source for those targets that nvcc knows."""
    steps = [step for step in _setup()["cuda_steps"](toolkit) if step.inputs[0].suffix == ".cu"]
    known = [name for name in targets if int(re.sub(r"\D", "", name)) in toolkit.known]
    return [
        Build(target, step.inputs[0].name, _to_cubin(step.command, TARGETS[target]))
        for step in steps
        for target in known
    ]


def _to_cubin(command: list[str], architecture: str) -> list[str]:
    """The command that makes an object, but for one architecture, with no host code."""
    words = iter(command)
    kept = []
    for word in words:
        if word in ("-gencode", "-MF", "-o"):
            next(words)
        elif word not in ("-c", "-MD"):
            kept.append(word)
    return [*kept, "-cubin", *gencode(architecture)]


def rows(build: Build) -> list[Row]:
    """The kernels of a source. RuntimeError, with what nvcc said, where it is wrong."""
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
            loops=loops(function.code.innermost) if name in VARIANTS else [],
        )
        for name, function in found
    ]


def loops(innermost: list[Counter[str]]) -> list[Inner]:
    """Those that go through elements."""
    return [loop for loop in map(classify, innermost) if loop]


def classify(loop: Counter[str]) -> Inner | None:
    """What a loop costs an element; None where it goes through something else.

    That of sweep.h adds to memory once a key, for 32 elements.
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
    """Those that the sources define, without what templates are given."""
    files = [*SOURCES.glob("*.cu"), *SOURCES.glob("*.h")]
    return {name for file in files for name in defined(file.read_text(encoding="utf-8"))}


def defined(source: str) -> list[str]:
    """The names of its kernels: what follows the attributes, whose names begin with __."""
    return re.findall(r"__global__[^;{]*?\b(?!__)(\w+)\s*\(", source)


def checks(target: str, found: list[Row], names: set[str]) -> list[Check]:
    """The assertions about the rows of a target; the names are those of kernels()."""
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
        "no SHFL and no BAR in an inner loop of CUDA kernels": [
            f"{row.kernel}, {loop.variant}: {loop.shuffles} and {loop.barriers}"
            for row, loop in each
            if loop.shuffles or loop.barriers
        ],
    }
    if target == COUNTED:
        backward = sum(_issued(each, variant) for variant in ("quad", "sweep: shared"))
        made |= {
            f"CUDA quad loops: at most {QUAD_ISSUED:g} instructions and {QUAD_MUFU} MUFU": [
                f"{row.kernel}, {loop.variant}: {loop.issued:.2f} and {loop.mufu:.2f}"
                for row, loop in each
                if loop.variant in QUADS and (loop.issued > QUAD_ISSUED or loop.mufu > QUAD_MUFU)
            ],
            f"CUDA backward: at most {BACKWARD_ISSUED:g} instructions": (
                [f"{backward:.2f}"] if backward > BACKWARD_ISSUED else []
            ),
        }
    return [Check(target, sentence, failures) for sentence, failures in made.items()]


def _issued(each: list[tuple[Row, Inner]], variant: str) -> float:
    """The instructions of a loop of the backward."""
    mine = (loop for row, loop in each if row.kernel == "backward_kernel<Logistic>")
    return max((loop.issued for loop in mine if loop.variant == variant), default=math.inf)


def table(target: str, found: list[Row]) -> Table:
    """A line a kernel, or a line for each of its inner loops."""
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
    """Of nvcc, such as 13.0."""
    done = subprocess.run([toolkit.command[0], "--version"], capture_output=True, text=True)
    found = re.search(r"release ([\d.]+)", done.stdout)
    return found[1] if found else "unknown"
