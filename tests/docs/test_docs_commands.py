"""The commands in README and the pages exist, with the options shown."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"python3? -m ([\w.]+)((?: +[^`\n#|)]*)?)")
OURS = ("attnkernels", "benchmarks", "examples", "tools")
TARGET = re.compile(r"(?:^    |`)make ((?:[a-z]+ ?)+)", re.MULTILINE)


def commands() -> dict[str, set[str]]:
    """Return every module of this project that a page runs, and its options there."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for module, arguments in COMMAND.findall(page.read_text(encoding="utf-8")):
            if module.split(".")[0] in OURS:
                options = re.findall(r"(?<!\S)--[a-z-]+", arguments)
                found.setdefault(module.rstrip("."), set()).update(options)
    return found


def spec_of(module: str) -> ModuleSpec:
    """Return the location of a module; fail if there is none."""
    parent = module.rpartition(".")[0]
    found = None if parent and find_spec(parent) is None else find_spec(module)
    assert found is not None, f"there is no module {module}"
    return found


@cache
def help_of(module: str) -> str:
    """Return the output of a command for --help."""
    found = spec_of(module)
    name = f"{module}.__main__" if found.submodule_search_locations else module
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as stopped:
        import_module(name).main(["--help"])
    assert stopped.value.code == 0
    return printed.getvalue()


@pytest.mark.parametrize("module", sorted(commands()))
def test_commands_exist(module: str) -> None:
    spec_of(module)
    missing = [option for option in commands()[module] if option not in help_of(module)]
    assert not missing, f"python -m {module} has no {', '.join(missing)}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for named in TARGET.findall(page.read_text(encoding="utf-8")):
            assert set(named.split()) <= targets, f"{page.name}: make {named}"


def test_a_missing_command_is_found() -> None:
    with pytest.raises(AssertionError, match="there is no module attnkernels.nothing"):
        help_of("attnkernels.nothing")
