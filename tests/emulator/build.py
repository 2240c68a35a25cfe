"""Builds what pytest asks of the emulator: tests/emulator/faults.cpp, small kernels, sound and at
fault, that it runs, and tests/emulator/maths.cpp, the inner functions of the CUDA kernels.

The compiler, its flags and the rule for what has changed are those of setup.py.
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

# What a file that includes cuda / device.h is compiled with; emulator.cpp is linked to it.
FLAGS = ["-DATTNKERNELS_EMULATED", "-Wno-unknown-pragmas", f"-I{FOLDER}"]  # of unroll


def why_not() -> str | None:
    """None where the extension can be built, otherwise what is missing."""
    if SETUP["compiler"]() is None:
        return "no C++ compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h: install the headers of this Python"
    return None


def load(*flags: str, name: str = "faults") -> ModuleType:
    """A module of SOURCES, compiled with further flags. CompileError where it is wrong."""
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
    # nothing of torch is in it, and under a sanitizer torch takes long to import
    SETUP["run"](link._replace(command=[x for x in link.command if not x.startswith("-l")]))
    # pybind11 remembers modules by their full name; PyInit_ is sought with what follows the dot
    spec = importlib.util.spec_from_file_location(f"{folder.name}.{name}", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
