"""Build `attnkernels/_C.abi3.so` from csrc/: one library for every Python and torch >= 2.10.

The library has no Python symbols and uses only torch's stable ABI, so plain compiler runs build it.
Each kernel is compiled once per instruction set, in parallel, and only when something it depends on
has changed. If nvcc is found, the CUDA kernels are included. They need no header of torch, so a
torch without CUDA is enough to build them.

Environment: CXX, CXXFLAGS, MAX_JOBS, ATTNKERNELS_CUDA (auto, 0 or 1), the variables of
build_cuda.py, ATTNKERNELS_WERROR=1 to treat nvcc's warnings as errors, and ATTNKERNELS_SANITIZE=1
for a library that reports bad memory accesses and undefined behaviour. With a cross compiler in
CXX, _PYTHON_HOST_PLATFORM=linux-aarch64 makes a wheel for that platform (tools/arm.py).
"""

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, SetupError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # pip and runpy do not put it on the path
from build_cuda import Toolkit, architectures, find_toolkit, gencode  # noqa: E402

SANITIZE = os.environ.get("ATTNKERNELS_SANITIZE", "0") == "1"
# Python's own name for what a cross compiler builds for, which the tag of the wheel follows.
CROSS = os.environ.get("_PYTHON_HOST_PLATFORM", "")
MACHINE = CROSS.split("-")[-1] or platform.machine()
OBJECTS = ROOT / "build" / ("sanitize" if SANITIZE else CROSS or "native")

# Kernels are compiled once per instruction set, and the processor's is chosen at run time. Other
# machines than x86-64 need only the baseline, which has vectors there (NEON on 64-bit ARM).
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", *AVX2]
QUIET = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # false in GCC 12's own intrinsics
ISAS = {"DEFAULT": [], "AVX2": AVX2, "AVX512": [*AVX512, *QUIET]}
if MACHINE not in ("x86_64", "AMD64"):
    ISAS = {"DEFAULT": []}

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZERS += ["-DATTNKERNELS_POISON"]  # fills results with NaN before they are written
OPTIMIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZERS] if SANITIZE else ["-O3"]
# -Werror=switch: an activation that a kernel lacks is an error. -Wno-psabi: no vector is passed
# from one object to another, so its ABI does not matter.
WARN = ["-Wall", "-Wextra", "-Werror=switch", "-Wno-psabi"]
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # nothing newer than torch 2.10

CUDA_BINDINGS = [ROOT / "csrc/torch" / name for name in ("cuda_ops.cpp", "cuda_edges.cpp")]

# macOS: Python's own symbols, which the tests' modules use, are found when the module is loaded. So
# are torch's libraries, which the process has loaded; the path is for the tools that look without.
DARWIN = ["-bundle", "-undefined", "dynamic_lookup", "-Wl,-rpath,@loader_path/../torch/lib"]
SHARED = DARWIN if sys.platform == "darwin" else ["-shared", *([] if SANITIZE else ["-s"])]


class Step(NamedTuple):
    """One compiler run: its output, its command, and the input files that the command names.

    `other` holds options that do not affect the output, so a change of them rebuilds nothing.
    """

    output: Path
    command: list[str]
    inputs: list[Path]
    other: Sequence[str] = ()


def compiler() -> list[str] | None:
    """Return the command of the C++ compiler: CXX, or the first usual name found, or None."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((shlex.split(name) for name in names if shutil.which(shlex.split(name)[0])), None)


def jobs() -> int:
    """Return the number of compilers that may run in parallel."""
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


def torch_root() -> Path:
    """Return the folder of torch, with its headers and libraries, without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise SetupError("attnkernels is built against torch >= 2.10: install torch first")
    if tuple(map(int, version("torch").split(".")[:2])) < (2, 10):
        raise SetupError(f"attnkernels needs torch >= 2.10, and this is {version('torch')}")
    return Path(spec.origin).parent


def compile_step(source: Path, output: Path, flags: list[str]) -> Step:
    """Return the step that compiles a C++ source and records the headers that it includes."""
    command = [*(compiler() or []), *shlex.split(os.environ.get("CXXFLAGS", "")), "-c"]
    command += [*OPTIMIZE, "-std=c++20", "-fPIC", "-fvisibility=hidden", *WARN]
    command += [f"-I{ROOT / 'csrc'}", "-isystem", str(torch_root() / "include"), *flags]
    command += [f"-fmacro-prefix-map={ROOT}/="]  # error messages name files of the project
    command += ["-MD", "-MF", f"{output}.d", str(source), "-o", str(output)]
    return Step(output, command, [source])


def isa_flags(isa: str) -> list[str]:
    """Return the flags that make at::vec the vector type of `isa`, one of ISAS."""
    return [f"-DCPU_CAPABILITY={isa}", f"-DCPU_CAPABILITY_{isa}", *ISAS[isa]]


def cpu_steps() -> list[Step]:
    """Return the steps for the binding and the CPU kernels, the baseline first.

    Of an inline function in several objects, the linker keeps the one from the first object, which
    must therefore run on every processor.
    """
    cpu, binding = ROOT / "csrc/cpu", ROOT / "csrc/torch"
    return [
        compile_step(binding / "cpu_ops.cpp", OBJECTS / "cpu_ops.o", STABLE_ABI),
        compile_step(binding / "cpu_edges.cpp", OBJECTS / "cpu_edges.o", STABLE_ABI),
        compile_step(binding / "cpu_aligned.cpp", OBJECTS / "cpu_aligned.o", STABLE_ABI),
        compile_step(cpu / "isa.cpp", OBJECTS / "isa.o", []),
        *(
            compile_step(cpu / f"{name}.cpp", OBJECTS / f"{name}_{isa}.o", isa_flags(isa))
            for isa in ISAS
            for name in ("kernels", "edge_kernels", "aligned_kernels")
        ),
    ]


def cuda_toolkit() -> Toolkit | None:
    """Return the toolkit for the CUDA kernels, or print why there is none and return None."""
    choice = os.environ.get("ATTNKERNELS_CUDA") or "auto"
    if choice not in ("auto", "0", "1"):
        raise SetupError(
            f"ATTNKERNELS_CUDA is {choice!r}; it can be auto (CUDA kernels where nvcc is found),"
            " 0 (none) or 1 (an error where they cannot be built)"
        )
    if SANITIZE or choice == "0":
        found: Toolkit | str = "they are not wanted"
    elif not CUDA_BINDINGS[0].exists():
        found = "csrc has none"
    else:
        found = find_toolkit(compiler() or [])
    if isinstance(found, Toolkit):
        names = " ".join(architectures(found.known))
        print(f"attnkernels: CUDA kernels for {names}, by {found.command[0]}")
        return found
    if choice == "1" and not SANITIZE:
        raise SetupError(f"ATTNKERNELS_CUDA=1 wants CUDA kernels, but {found}")
    print(f"attnkernels: no CUDA kernels: {found}")
    return None


def cuda_steps(toolkit: Toolkit) -> list[Step]:
    """Return the steps for the CUDA kernels, each for every architecture, and their bindings."""
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    flags = ["-c", "-O3", "-std=c++20", f"-I{ROOT / 'csrc'}"]
    flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror=switch"]
    flags += [flag for name in architectures(toolkit.known) for flag in gencode(name)]
    other = ["--threads", str(max(1, jobs() // max(1, len(sources))))]
    if (
        os.environ.get("ATTNKERNELS_WERROR") == "1"
    ):  # not for users: other versions of nvcc warn more
        other += ["-Werror", "all-warnings"]
    steps = []
    for source in sources:
        output = OBJECTS / f"{source.stem}.cu.o"
        command = [*toolkit.command, *flags, "-MD", "-MF", f"{output}.d", str(source)]
        steps.append(Step(output, [*command, "-o", str(output)], [source], other))
    headers = [f"-isystem{folder}" for folder in toolkit.headers]
    flags = [*STABLE_ABI, "-DUSE_CUDA", *headers]
    return [*steps, *(compile_step(x, OBJECTS / f"{x.stem}.o", flags) for x in CUDA_BINDINGS)]


def cuda_libraries(toolkit: Toolkit) -> list[str]:
    """Return the linker's options for CUDA: its static runtime, and libtorch.

    If torch has CUDA, libtorch defines the weak symbol through which the binding gets the stream. A
    weak symbol alone would not make the linker keep libtorch.
    """
    folders = [f"-L{folder}" for folder in toolkit.libraries]
    runtime = ["-lcudart_static", "-lrt", "-ldl", "-lpthread"]
    return ["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", *folders, *runtime]


def link_step(objects: list[Path], output: Path, libraries: Sequence[str] = ()) -> Step:
    """Return the step that links objects into a library, for a process that has loaded torch."""
    command = [*(compiler() or []), *SHARED, *OPTIMIZE]
    command += [*map(str, objects), f"-L{torch_root() / 'lib'}", "-ltorch_cpu", "-lc10"]
    return Step(output, [*command, *libraries, "-o", str(output)], objects)


def is_fresh(step: Step) -> bool:
    """Return True if this very command made the output and no input has changed since."""
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
    """Run a step unless its output is fresh. One of several processes at a time runs it.

    Raises:
        CompileError: the compiler failed; the message holds its command and output.
    """
    if is_fresh(step):
        return
    step.output.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{step.output}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_fresh(step):
            _compile(step)


def _compile(step: Step) -> None:
    record = Path(f"{step.output}.cmd")
    record.unlink(missing_ok=True)  # so that an interrupted run leaves none
    sys.stderr.write(f"building {step.output.relative_to(ROOT)}\n")
    done = subprocess.run(
        [*step.command, *step.other],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "LD_PRELOAD": "",
        },  # a preloaded sanitizer is for Python, not the compiler
    )
    if done.returncode != 0:
        raise CompileError(f"{shlex.join(step.command)}\n{done.stdout}")
    sys.stderr.write(done.stdout)  # warnings
    record.write_text(shlex.join(step.command))


def build(steps: list[Step], library: Path, libraries: Sequence[str] = ()) -> Path:
    """Run the steps, MAX_JOBS at a time, and link their outputs in the order given."""
    with ThreadPoolExecutor(jobs()) as pool:
        list(pool.map(run, steps))
    run(link_step([step.output for step in steps], library, libraries))
    return library


class BuildLibrary(build_ext):
    """Build with the steps above instead of Python's own compiler and libraries."""

    def build_extension(self, ext: Extension) -> None:
        steps: list[Step] = cpu_steps()
        libraries: list[str] = []
        if toolkit := cuda_toolkit():  # its steps come first, as they take longest
            steps = [*cuda_steps(toolkit), *steps]
            libraries = cuda_libraries(toolkit)
        library = build(steps, OBJECTS / "_C.abi3.so", libraries)
        target = Path(self.get_ext_fullpath(ext.name))
        self.mkpath(str(target.parent))
        self.copy_file(str(library), str(target))

    def get_ext_filename(self, fullname: str) -> str:
        """Return one name on every Python, free-threaded ones too."""
        return f"{fullname.replace('.', '/')}.abi3.so"


class Wheel(bdist_wheel):
    """A wheel for every Python 3, free-threaded or not."""

    def get_tag(self) -> tuple[str, str, str]:
        *_, of_platform = super().get_tag()
        return "py3", "none", of_platform


def extensions() -> list[Extension]:
    """Return the extension, or none without a compiler: the reference backend needs none."""
    if compiler() or os.environ.get("ATTNKERNELS_CUDA") == "1":  # 1: an error when it is built
        return [Extension("attnkernels._C", sources=[])]
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
        cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
    )
