"""Build the CUDA kernels and their operators as a library for CPU tensors, run by the emulator.

    python tests/emulator/library.py

prints its path. With ATTNKERNELS_LIBRARY set to that path, the backend `native` runs those kernels,
and every test of a backend tests them.
"""

from __future__ import annotations

import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
SETUP: dict[str, Any] = runpy.run_path(str(ROOT / "setup.py"))
BUILT: Path = SETUP["OBJECTS"] / "emulated"
# as much optimisation as compiles quickly; a sanitizer may want less
FLAGS = [
    "-DATTNKERNELS_EMULATED",
    "-DATTNKERNELS_POISON",
    "-Wno-unknown-pragmas",
    "-O1",
    f"-I{FOLDER}",
]


def sources() -> list[Path]:
    """Return the sources of the library, the kernels first."""
    return [*kernels(), *SETUP["CUDA_BINDINGS"], FOLDER / "emulator.cpp"]


def kernels() -> list[Path]:
    """Return the sources of the kernels, which need no torch."""
    return sorted((ROOT / "csrc/cuda").glob("*.cu"))


def build_unlaunched(*more: str) -> Path:
    """Return a library that does all that the host does, without a check, and starts no kernel.

    Args:
        more: flags of the compiler, besides, for `sliced.cu`.
    """
    folder = SETUP["OBJECTS"] / "unlaunched"
    other = folder / "-".join(flag.strip("-") for flag in more)
    flags = [*SETUP["STABLE_ABI"], "-DATTNKERNELS_EMULATED", "-DATTNKERNELS_UNLAUNCHED"]
    flags += ["-Wno-unknown-pragmas", f"-I{FOLDER}", "-x", "c++"]
    steps = []
    for source in sources():
        quick = ["-O0"] if source.suffix == ".cu" else []  # of these, only launches are called
        into, added = (other, more) if source.name == "sliced.cu" else (folder, ())
        made = into / f"{source.name}.o"
        steps.append(SETUP["compile_step"](source, made, [*flags, *quick, *added]))
    return _linked(steps, other / "_C.abi3.so")


def build(changed: Path | None = None, folder: Path = BUILT, *flags: str) -> Path:
    """Return the library, with `changed` in place of the source of that name, built in `folder`."""
    replaced = {} if changed is None else {changed.name: changed}
    steps = [
        step(replaced[source.name], folder, *flags) if source.name in replaced else step(source)
        for source in sources()
    ]
    return _linked(steps, folder / "_C.abi3.so")


def step(source: Path, folder: Path = BUILT, *flags: str) -> Any:
    """Return the step that compiles a source for the emulator."""
    every = [*SETUP["STABLE_ABI"], *FLAGS, "-x", "c++", *flags]
    return SETUP["compile_step"](source, folder / f"{source.name}.o", every)


def _linked(steps: list[Any], library: Path) -> Path:
    """Compile the sources of `steps`, and return what they are linked to."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(SETUP["run"], steps))
    SETUP["run"](SETUP["link_step"]([step.output for step in steps], library))
    return library


if __name__ == "__main__":
    print(build())
