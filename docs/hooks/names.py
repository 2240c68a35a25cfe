"""Find the public names of the package, and those that the pages of the API document."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from inspect import getdoc, isfunction
from pathlib import Path

API = Path(__file__).resolve().parents[1] / "api"
MODULES = (
    "",
    ".distributed",
    ".nn",
    ".models",
    ".interop",
    ".viz",
    ".profile",
    ".info",
    ".testing",
)
DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def public_names(modules: Iterable[str] = MODULES) -> dict[str, object]:
    """Return every public object by its full name.

    A module's public names are its ``__all__``, or the functions that it defines if it has none.
    ``main`` is a command, documented by its help.
    """
    found = {}
    for suffix in modules:
        module = import_module(f"attnkernels{suffix}")
        names = getattr(module, "__all__", None) or [
            name
            for name, each in vars(module).items()
            if isfunction(each) and each.__module__ == module.__name__
            if name != "main" and not name.startswith("_")
        ]
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in names}
    return found


def documented(folder: Path = API) -> set[str]:
    """Return the full names that the pages of a folder document, one directive each."""
    pages = (page.read_text(encoding="utf-8") for page in folder.rglob("*.md"))
    return {name for page in pages for name in DIRECTIVE.findall(page)}


def spellings(name: str, each: object) -> set[str]:
    """Return the possible names of an object: a module may be hidden by a function of its name."""
    module, inside = getattr(each, "__module__", None), getattr(each, "__qualname__", None)
    return {name, f"{module}.{inside}"} if module and inside else {name}


def undocumented(names: dict[str, object], known: set[str]) -> list[str]:
    """Return a sentence for each public name that has no page or no docstring."""
    missing = [
        f"{name} is on no page of docs/api"
        for name, each in names.items()
        if not spellings(name, each) & known
    ]
    silent = [
        f"{name} has no docstring"
        for name, each in names.items()
        if callable(each) and not getdoc(each)
    ]
    return sorted(missing + silent)
