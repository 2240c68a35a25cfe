"""One file per library: a plain copy of its classes, and the cases by which it is tested.

Every file beside this one is discovered automatically. It may define

- ``LOADS``: names to `LoadCase`, its checkpoints, for test_load.py;
- ``SWAPS``: names to `SwapCase`, its live modules, for test_replace.py and test_recognise.py.

The copies are plain PyTorch, written from the documented formula with the library's class name,
parameters, attributes, arguments and results, so that no test needs the library. What a library
has beyond these cases is tested in tests/interop/test_<library>.py.
"""

from __future__ import annotations

import importlib
import pkgutil

from helpers.interop_load import LoadCase
from helpers.interop_swap import SwapCase

LOADS: dict[str, LoadCase] = {}
SWAPS: dict[str, SwapCase] = {}
for _name in sorted(each.name for each in pkgutil.iter_modules(__path__)):
    _library = importlib.import_module(f"{__name__}.{_name}")
    LOADS |= getattr(_library, "LOADS", {})
    SWAPS |= getattr(_library, "SWAPS", {})
