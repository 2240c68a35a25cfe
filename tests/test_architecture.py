"""The import table: who may know whom. A layer that reaches past its neighbour fails here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "attnkernels"
CSRC = ROOT / "csrc"

OBSERVERS = {"profile", "profiling", "info", "viz", "distributed"}

# module, or folder with a trailing slash -> the parts of attnkernels it may import
MAY_IMPORT: dict[str, set[str]] = {
    "checks": {"backends.base"},
    "extras": set(),
    "functional": {"backends", "checks", "ranges"},
    "memory": {"backends", "checks", "functional", "ranges"},
    "ranges": set(),
    "ops": {"backends.base", "derivatives", "vmaps"},
    "derivatives": {"backends.base", "backends.reference"},  # what double backward goes through
    "vmaps": set(),
    "backends/__init__": {"backends"},
    "backends/base": set(),
    "backends/philox": set(),
    "backends/reference": {"backends.base", "backends.philox"},
    "backends/fused": {"derivatives"},
    "backends/triton/": {
        "backends.base",
        "backends.fused",
        "backends.triton",
        "derivatives",
        "ops",
    },
    "backends/": {"backends.base", "backends.fused", "derivatives", "ops"},
    "nn/": {"functional", "memory", "nn"},
    "interop/": {"functional", "memory", "nn", "interop"},
    "models/": {"nn", "models"},
    "testing": {"backends", "functional", "memory", "nn"},
}


def modules() -> list[str]:
    files = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(file.as_posix() for file in files)


def rule(module: str) -> set[str] | None:
    """The parts a module may import; None where it may import any."""
    if module == "__init__" or module.split("/")[0] in OBSERVERS:
        return None
    if module in MAY_IMPORT:
        return MAY_IMPORT[module]
    folders = [name for name in MAY_IMPORT if name.endswith("/") and module.startswith(name)]
    assert folders, f"{module} is not in the import table: decide what it may import"
    return MAY_IMPORT[max(folders, key=len)]


def imports(module: str) -> set[str]:
    """Dotted names below attnkernels that a module imports, anywhere in its text."""
    here = ["attnkernels", *module.split("/")]
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` names a module, `from .x import y` a thing inside one: keep the file
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                path = ROOT.joinpath(*inner.split("."))
                is_module = path.with_suffix(".py").exists() or path.is_dir()
                found.add(inner if is_module else source)
    return {name.removeprefix("attnkernels.") for name in found if name.startswith("attnkernels.")}


def allowed(name: str, permitted: set[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in permitted)


@pytest.mark.parametrize("module", modules())
def test_imports_follow_the_table(module: str) -> None:
    permitted = rule(module)
    if permitted is not None:
        strangers = {name for name in imports(module) if not allowed(name, permitted)}
        assert not strangers, f"{module} may import {sorted(permitted)}, not {sorted(strangers)}"


def test_every_backend_is_a_module_with_the_same_face() -> None:
    from attnkernels.backends import BACKENDS

    for backend in BACKENDS:
        assert isinstance(backend.NAME, str)
        for part in ("why_not", "attention", "attention_varlen", "scores", "pack_keys"):
            assert callable(getattr(backend, part)), f"{backend.NAME} lacks {part}"


def sources(*suffixes: str) -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in suffixes)


@pytest.mark.parametrize("device, other", [("cpu", "cuda"), ("cuda", "cpu")])
def test_devices_do_not_include_each_other(device: str, other: str) -> None:
    files = [
        path
        for path in sources(".h", ".hpp", ".cpp", ".cu", ".cuh", ".inc")
        if device in path.parts
    ]
    for path in files:
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text())
        assert not [name for name in included if other in Path(name).parts], path


def test_tests_never_time_and_benchmarks_never_assert_times() -> None:
    timing = re.compile(r"\b(perf_counter|process_time|monotonic|timeit)\b")
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__).resolve():
            assert not timing.search(path.read_text()), f"{path.name} measures time"


def test_files_stay_small() -> None:
    files = [
        path
        for folder in ("attnkernels", "tests", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
    ]
    files += sources(".h", ".hpp", ".cpp", ".cu", ".cuh", ".inc")
    for path in [*files, ROOT / "setup.py"]:
        lines = len(path.read_text().splitlines()) if path.exists() else 0
        assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"
