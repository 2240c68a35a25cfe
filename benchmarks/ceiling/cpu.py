"""Measure the ceiling of this machine: compile `cpu.cpp` for it and run it on one core.

python -m benchmarks.ceiling
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from attnkernels.measure.machine import cpu_name

SOURCE = Path(__file__).with_name("cpu.cpp")
FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-std=c++20"]
COMPILERS = ("g++", "clang++", "c++")


def ceiling() -> dict[str, float]:
    """Return the rates of one core, in 10^9 per second, and their errors; {} without a compiler.

    lanes: floats per register. multiply_add_g: multiply-adds of floats. scores_g and gradients_g:
    elements (i, j, t) of (E9) forward, and of the sums of (E5) and (E6). *_error: their errors.
    """
    program = _program()
    if program is None:
        return {}
    ran = subprocess.run([program], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def seconds(rates: dict[str, float], elements: float, direction: str, threads: int) -> float | None:
    """Return the seconds that `elements` = B * n * m * d take on `threads` cores at the ceiling.

    The forward is one pass of scores. Forward and backward are two passes of scores, since the
    backward recomputes them, and one of gradients.
    """
    if not rates:
        return None
    one = 1 / rates["scores_g"]
    if direction == "both":
        one = 2 * one + 1 / rates["gradients_g"]
    return elements * one / 1e9 / threads


def _program() -> Path | None:
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    return None if compiler is None else compiled(SOURCE, [compiler, *FLAGS], cpu_name())


def compiled(source: Path, command: list[str], machine: str) -> Path:
    """Compile `source` by `command` for `machine`; return the program, kept in the user's cache.

    Raises:
        subprocess.CalledProcessError: the compilation failed; it has the compiler's output.
    """
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True)
    made_of = source.read_text() + version.stdout + " ".join(command) + machine
    name = f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnkernels"
    program = cache / name
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f"{name}.{os.getpid()}"
        output = ["-o", str(partial)]
        subprocess.run([*command, str(source), *output], capture_output=True, text=True, check=True)
        partial.replace(program)
    return program
