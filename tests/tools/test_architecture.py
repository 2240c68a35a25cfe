"""The layers of the package: a module imports only from layers below its own."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "attnkernels"
CSRC = ROOT / "csrc"

# Layers from the ground up, without exceptions. A module may also import from its own part. Give a
# new part its place here.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("ops",),
    ("backends",),
    ("functional",),
    ("nn",),
    ("interop", "models", "distributed"),
    ("extras", "measure", "testing"),
    ("profile", "viz", "info"),
)

# Inside some parts the order matters too: a module imports only modules that come before it.
OPS = (
    *(
        "codes",
        "signature",
        "shapes",
        "dropout",
        "seed",
        "key_blocks",
        "series",
        "sines",
        "formula",
        "edge_formula",
        "plain",
    ),
    "failures",
    *("fakes", "vmap", "schema", "unmasked", "inference", "forward_mode", "autograd"),
)
# Every module of backends that is not named here is a backend, and stands at the dots.
BACKENDS = ("base", "fused", "...", "select", "__init__")
INTEROP = (
    "__init__",
    "convention",
    "live",
    "attend",
    "located",
    "libraries",
    "load",
    "trial",
    "replace",
)


def modules() -> list[str]:
    files = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(file.as_posix() for file in files)


def part(name: str) -> str:
    """Return the part of the package that a dotted or slashed name belongs to."""
    return re.split(r"[./]", name)[0]


def layer(name: str) -> int:
    found = [i for i, parts in enumerate(LAYERS) if part(name) in parts]
    assert found, f"{name} is in no layer: decide where it stands"
    return found[0]


def imports(module: str) -> set[str]:
    """Return the dotted names below attnkernels that a module imports, anywhere in its text."""
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


@pytest.mark.parametrize("module", [name for name in modules() if name != "__init__"])
def test_no_import_points_upward(module: str) -> None:
    for name in imports(module):
        if part(name) == "__version__" or part(name) == part(module):
            continue
        assert layer(name) < layer(module), f"{module} imports {name}, which stands above it"


@pytest.mark.parametrize("room, order", [("ops", OPS), ("backends", BACKENDS)])
def test_the_ground_floor_has_an_order(room: str, order: tuple[str, ...]) -> None:
    for module in modules():
        if part(module) != room or module == "ops/__init__":
            continue
        own = module.split("/")[1]
        inside = {name.split(".")[1] for name in imports(module) if name.startswith(room + ".")}
        for name in inside - {own}:
            assert rank(order, name) < rank(order, own), f"{module} imports {room}.{name}"


def test_backends_do_not_know_each_other() -> None:
    inside = [name for name in modules() if part(name) == "backends"]
    backends = {name.split("/")[1] for name in inside} - set(BACKENDS)
    assert backends >= {"reference", "native", "triton"}
    for module in inside:
        if module.split("/")[1] in backends:
            others = backends - {module.split("/")[1]}
            known = {name.split(".")[1] for name in imports(module) if name.startswith("backends.")}
            assert not known & others, module


def rank(order: tuple[str, ...], name: str) -> int:
    return order.index(name if name in order else "...")


def test_the_core_of_interop_has_an_order_and_knows_no_library() -> None:
    for module in modules():
        if module.startswith("interop/core/"):
            here = INTEROP.index(module.removeprefix("interop/core/"))
            for name in imports(module):
                assert not name.startswith("interop.") or name.startswith("interop.core."), module
                if name.startswith("interop.core."):
                    assert INTEROP.index(name.removeprefix("interop.core.")) < here, (module, name)


def test_a_library_of_interop_knows_the_core_and_no_other_library() -> None:
    """It imports the files of the core that come before the table of libraries, and no package."""
    allowed = {f"interop.core.{name}" for name in INTEROP[: INTEROP.index("libraries")]}
    packages = {"torch", "attnkernels", *sys.stdlib_module_names}
    for module in modules():
        if re.fullmatch(r"interop/(?!__init__)\w+", module):
            known = {name for name in imports(module) if name.startswith("interop.")}
            assert known <= allowed, module
            tree = ast.parse((PACKAGE / f"{module}.py").read_text())
            for node in ast.walk(tree):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    names = [node.module]
                assert {part(name) for name in names} <= packages, module


def test_every_backend_is_a_module_with_the_same_face() -> None:
    from attnkernels.backends import BACKENDS

    for backend in BACKENDS:
        assert isinstance(backend.NAME, str)
        for part in ("why_not", "attention", "scores", "pack_keys"):
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
        for folder in ("attnkernels", "tests", "benchmarks", "examples", "tools")
        for path in (ROOT / folder).rglob("*.py")
    ]
    files += sources(".h", ".hpp", ".cpp", ".cu", ".cuh", ".inc")
    for path in [*files, ROOT / "setup.py"]:
        lines = len(path.read_text().splitlines()) if path.exists() else 0
        assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"
