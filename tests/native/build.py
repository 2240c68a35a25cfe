"""Build tests/native/maths.cpp, the inner functions of the CPU kernels, for an instruction set.

The compiler, its flags and the check for changed files are those of setup.py.
"""

import importlib.machinery
import importlib.util
import runpy
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
import torch

SOURCE = Path(__file__).with_name("maths.cpp")
SETUP: dict[str, Any] = runpy.run_path(str(SOURCE.parents[2] / "setup.py"))


def why_not() -> str | None:
    """Return None if the extension can be built, or a sentence that names what is missing."""
    if SETUP["compiler"]() is None:
        return "no C++ compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h: install the headers of this Python"
    return None


def isas() -> list[str]:
    """Return the instruction sets that kernels are compiled for and this processor supports."""
    names = list(SETUP["ISAS"])
    best = torch.backends.cpu.get_cpu_capability()
    return names[: names.index(best) + 1] if best in names else names[:1]


def load(isa: str) -> ModuleType:
    """Return the module `maths` built for `isa`, one of isas(). Raise CompileError if it fails."""
    folder = SETUP["OBJECTS"] / "tests" / isa
    headers = [pybind11.get_include(), sysconfig.get_path("include")]
    flags = [*SETUP["isa_flags"](isa), *(f"-isystem{path}" for path in headers)]
    step = SETUP["compile_step"](SOURCE, folder / "maths.o", flags)
    library = SETUP["build"]([step], folder / f"maths{importlib.machinery.EXTENSION_SUFFIXES[0]}")
    # pybind11 keeps modules by their full name; the loader looks for PyInit_ plus its last part
    spec = importlib.util.spec_from_file_location(f"{isa}.maths", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
