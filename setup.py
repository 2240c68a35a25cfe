"""Builds `attnkernels/_C.abi3.so` from csrc/: one library for every Python and torch >= 2.10.

It holds no Python symbols and asks of torch only its stable ABI, so plain compiler runs make it:
each kernel once for every instruction set, in parallel, and only what has changed.

Environment: CXX, CXXFLAGS, MAX_JOBS, and ATTNKERNELS_SANITIZE=1 for a library that reports bad
memory accesses and undefined behaviour.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, SetupError

ROOT = Path(__file__).resolve().parent
SANITIZE = os.environ.get("ATTNKERNELS_SANITIZE", "0") == "1"
OBJECTS = ROOT / "build" / ("sanitize" if SANITIZE else "native")

# Kernels are compiled once for each and chosen at run time by what the processor has. Elsewhere
# than on x86-64 one is enough: the baseline has vectors there (NEON on 64-bit ARM).
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", *AVX2]
QUIET = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # GCC 12 means its own intrinsics
ISAS = {"DEFAULT": [], "AVX2": AVX2, "AVX512": [*AVX512, *QUIET]}
if platform.machine() not in ("x86_64", "AMD64"):
    ISAS = {"DEFAULT": []}

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
OPTIMIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZERS] if SANITIZE else ["-O3"]
WARN = ["-Wall", "-Wextra", "-Wno-psabi"]  # no vector leaves its object, whatever its ABI
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # nothing newer than torch 2.10


class Step(NamedTuple):
    """One compiler run: the file it makes, its command, and the files the command names."""

    output: Path
    command: list[str]
    inputs: list[Path]


def compiler() -> list[str] | None:
    """The C++ compiler: CXX, or the first of the usual names; None when there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((shlex.split(name) for name in names if shutil.which(shlex.split(name)[0])), None)


def torch_root() -> Path:
    """Where torch is installed: for its headers and libraries, so it need not be imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise SetupError("attnkernels is built against torch >= 2.10: install torch first")
    if tuple(map(int, version("torch").split(".")[:2])) < (2, 10):
        raise SetupError(f"attnkernels needs torch >= 2.10, and this is {version('torch')}")
    return Path(spec.origin).parent


def compile_step(source: Path, output: Path, flags: list[str]) -> Step:
    """The step that makes an object of a C++ source, and a list of the headers it read."""
    command = [*(compiler() or []), *shlex.split(os.environ.get("CXXFLAGS", "")), "-c"]
    command += [*OPTIMIZE, "-std=c++20", "-fPIC", "-fvisibility=hidden", *WARN]
    command += [f"-I{ROOT / 'csrc'}", "-isystem", str(torch_root() / "include"), *flags]
    command += ["-MD", "-MF", f"{output}.d", str(source), "-o", str(output)]
    return Step(output, command, [source])


def isa_flags(isa: str) -> list[str]:
    """Flags under which at::vec is the vector type of `isa`, one of ISAS."""
    return [f"-DCPU_CAPABILITY={isa}", f"-DCPU_CAPABILITY_{isa}", *ISAS[isa]]


def cpu_steps() -> list[Step]:
    """The binding and the CPU kernels, the baseline first.

    The linker keeps an inline function that several objects hold from the first of them, so the
    first must be one that every processor can run.
    """
    kernels = ROOT / "csrc/cpu/kernels.cpp"
    return [
        compile_step(ROOT / "csrc/ops.cpp", OBJECTS / "ops.o", STABLE_ABI),
        compile_step(ROOT / "csrc/cpu/isa.cpp", OBJECTS / "isa.o", []),
        *(compile_step(kernels, OBJECTS / f"kernels_{isa}.o", isa_flags(isa)) for isa in ISAS),
    ]


def link_step(objects: list[Path], output: Path) -> Step:
    """The step that makes a library of objects, for a process that has torch loaded."""
    command = [*(compiler() or []), "-shared", *OPTIMIZE, *([] if SANITIZE else ["-s"])]
    command += [*map(str, objects), f"-L{torch_root() / 'lib'}", "-ltorch_cpu", "-lc10"]
    return Step(output, [*command, "-o", str(output)], objects)


def is_fresh(step: Step) -> bool:
    """Whether the output was made by this very command and by files that have not changed since."""
    record, depfile = Path(f"{step.output}.cmd"), Path(f"{step.output}.d")
    if not (step.output.exists() and record.exists()):
        return False
    inputs = list(step.inputs)
    if depfile.exists():  # "output: source header header", lines continued by a backslash
        inputs += map(Path, depfile.read_text().split(": ", 1)[1].replace("\\\n", " ").split())
    made = step.output.stat().st_mtime_ns
    return record.read_text() == shlex.join(step.command) and all(
        path.exists() and path.stat().st_mtime_ns <= made for path in inputs
    )


def run(step: Step) -> None:
    """Runs a step unless its output is fresh. CompileError, with what the compiler said."""
    if is_fresh(step):
        return
    step.output.parent.mkdir(parents=True, exist_ok=True)
    record = Path(f"{step.output}.cmd")
    record.unlink(missing_ok=True)  # a run that is interrupted leaves no record
    sys.stderr.write(f"building {step.output.relative_to(ROOT)}\n")
    done = subprocess.run(
        step.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LD_PRELOAD": ""},  # a sanitizer is meant for Python, not the compiler
    )
    if done.returncode != 0:
        raise CompileError(f"{shlex.join(step.command)}\n{done.stdout}")
    sys.stderr.write(done.stdout)  # what it warned of
    record.write_text(shlex.join(step.command))


def build(steps: list[Step], library: Path) -> Path:
    """Runs the steps, MAX_JOBS at a time, and links their outputs in the order given."""
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        list(pool.map(run, steps))
    run(link_step([step.output for step in steps], library))
    return library


class BuildLibrary(build_ext):
    """`build_ext` with the steps above instead of Python's own compiler and libraries."""

    def build_extension(self, ext: Extension) -> None:
        library = build(cpu_steps(), OBJECTS / "_C.abi3.so")
        target = Path(self.get_ext_fullpath(ext.name))
        self.mkpath(str(target.parent))
        self.copy_file(str(library), str(target))


def extensions() -> list[Extension]:
    """The extension, or none where nothing can build it: then there is the reference backend."""
    if compiler():
        return [Extension("attnkernels._C", sources=[], py_limited_api=True)]
    print(
        "attnkernels: no C++ compiler (g++, clang++, c++, or what CXX names) was found.\n"
        "Installing the reference backend only. For the fast one, install a compiler and then\n"
        "attnkernels again.",
        file=sys.stderr,
    )
    return []


if __name__ == "__main__":  # tests/native/build.py uses the functions above
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildLibrary},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
