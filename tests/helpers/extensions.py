"""Compile and import the extensions that tests build from C++, by the functions of setup.py.

torch is not imported: under a sanitizer that is slow.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import runpy
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11

SETUP: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "setup.py"))
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
HEADERS = [f"-isystem{x}" for x in (pybind11.get_include(), sysconfig.get_path("include"))]


def why_not() -> str | None:
    """Return None if an extension can be built, otherwise the reason why not."""
    if SETUP["compiler"]() is None:
        return "no C++ compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h: install the headers of this Python"
    return None


def imported(name: str, library: Path) -> ModuleType:
    """Import a built extension under a full name with a dot.

    pybind11 keys modules by their full name; Python looks for PyInit_ of the part after the dot.
    """
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
