"""Build the extensions with which pytest tests the emulator and the CUDA kernels.

tests/emulator/faults.cpp has small kernels, sound and faulty; tests/emulator/maths.cpp the inner
functions of the CUDA kernels. Compiler, flags and the rule for rebuilding are those of setup.py.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import runpy
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11

FOLDER = Path(__file__).parent
SETUP: dict[str, Any] = runpy.run_path(str(FOLDER.parents[1] / "setup.py"))
SOURCES = {"faults": "faults.cpp", "cuda_maths": "maths.cpp"}

# For a file that includes cuda/device.h, to which emulator.cpp is linked.
FLAGS = ["-DATTNKERNELS_EMULATED", "-Wno-unknown-pragmas", f"-I{FOLDER}"]  # of unroll


def why_not() -> str | None:
    """Return None if the extension can be built, otherwise the reason why not."""
    if SETUP["compiler"]() is None:
        return "no C++ compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h: install the headers of this Python"
    return None


def load(*flags: str, name: str = "faults") -> ModuleType:
    """Return a module of SOURCES, compiled with further flags, or raise CompileError."""
    folder = SETUP["OBJECTS"] / "tests" / "-".join(["emulator", *(f.strip("-") for f in flags)])
    headers = [pybind11.get_include(), sysconfig.get_path("include")]
    every = [*FLAGS, *(f"-isystem{path}" for path in headers), *flags]
    steps = [
        SETUP["compile_step"](FOLDER / source, (folder / source).with_suffix(".o"), every)
        for source in ("emulator.cpp", SOURCES[name])
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(SETUP["run"], steps))
    library = folder / f"{name}{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    link = SETUP["link_step"]([step.output for step in steps], library)
    # it uses nothing of torch, whose import is slow under a sanitizer
    SETUP["run"](link._replace(command=[x for x in link.command if not x.startswith("-l")]))
    # pybind11 keys modules by their full name; Python looks for PyInit_ of the part after the dot
    spec = importlib.util.spec_from_file_location(f"{folder.name}.{name}", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
