"""Build the extensions with which pytest tests the emulator and the CUDA kernels.

tests/emulator/faults.cpp has small kernels, sound and faulty; tests/emulator/maths.cpp the inner
functions of the CUDA kernels. Compiler, flags and the rule for rebuilding are those of setup.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from helpers.extensions import HEADERS, SETUP, SUFFIX, imported

FOLDER = Path(__file__).parent
SOURCES = {"faults": "faults.cpp", "cuda_maths": "maths.cpp"}

# For a file that includes cuda/device.h, to which emulator.cpp is linked.
FLAGS = ["-DATTNKERNELS_EMULATED", "-Wno-unknown-pragmas", f"-I{FOLDER}"]  # of unroll


def load(*flags: str, name: str = "faults") -> ModuleType:
    """Return a module of SOURCES, compiled with further flags, or raise CompileError."""
    folder = SETUP["OBJECTS"] / "tests" / "-".join(["emulator", *(f.strip("-") for f in flags)])
    every = [*FLAGS, *HEADERS, *flags]
    steps = [
        SETUP["compile_step"](FOLDER / source, (folder / source).with_suffix(".o"), every)
        for source in ("emulator.cpp", SOURCES[name])
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(SETUP["run"], steps))
    library = folder / f"{name}{SUFFIX}"
    link = SETUP["link_step"]([step.output for step in steps], library)
    # it uses nothing of torch, whose import is slow under a sanitizer
    SETUP["run"](link._replace(command=[x for x in link.command if not x.startswith("-l")]))
    return imported(f"{folder.name}.{name}", library)
