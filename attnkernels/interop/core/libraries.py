"""The table of libraries, collected from the files beside this folder.

Every module of `attnkernels.interop` is one library. It may define

- ``CONVENTIONS``: names to `Convention`, the rules for its checkpoints;
- ``LIVE``: a tuple of `Live`, how its modules are recognised in a model and computed.

Files are read in alphabetical order, and entries in the order of their file. A convention's name
belongs to one file. A module belongs to the first `Live` whose class name and arguments fit it.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from .convention import Convention
from .live import Live


def _libraries() -> list[ModuleType]:
    """Import the library files. None of them imports its library."""
    package = importlib.import_module(__name__.removesuffix(".core.libraries"))
    names = sorted(each.name for each in pkgutil.iter_modules(package.__path__) if not each.ispkg)
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def _conventions(libraries: list[ModuleType]) -> dict[str, Convention]:
    table: dict[str, Convention] = {}
    for library in libraries:
        own: dict[str, Convention] = getattr(library, "CONVENTIONS", {})
        if taken := sorted(table.keys() & own.keys()):
            raise ValueError(
                f"CONVENTIONS of {library.__name__} must have names of its own, got {taken}"
            )
        table |= own
    return table


LIBRARIES = _libraries()
CONVENTIONS: dict[str, Convention] = _conventions(LIBRARIES)
LIVE: tuple[Live, ...] = tuple(live for each in LIBRARIES for live in getattr(each, "LIVE", ()))
