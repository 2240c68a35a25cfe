"""Python's table of constants against C++'s, and each constant defined once per language."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from attnkernels.ops import codes
from attnkernels.ops.codes import ACTIVATIONS, ActivationName
from attnkernels.ops.formula import FUNCTIONS

ROOT = Path(__file__).resolve().parents[2]
CSRC, PACKAGE = ROOT / "csrc", ROOT / "attnkernels"
ROOMS = ("ops", "backends", "functional")
CODES = PACKAGE / "ops" / "codes.py"

# name in Python: name in C++
CONTRACT = {
    "QUERY": "kQuery",
    "KEY": "kKey",
    "WEIGHT": "kWeight",
    "VALUE": "kValue",
    "MASK": "kMask",
    "DETERMINISTIC": "kDeterministic",
    "BLOCK": "kIsBlock",
    "EDGE_KEY": "kEdgeKey",
    "EDGE_BIAS": "kEdgeBias",
    "FAST": "kFast",
    "STEP_QUERIES": "kStepQueries",
    "PANEL": "kPanel",
    "LANE": "kLane",
}
LIMITS = {"QUAD": "quad", "PAIR": "pair", "FACTORED": "factored", "EXP_QUAD": "exp_quad"}
NUMBER = r"(?<![\w.])(\d+(?:\.\d*)?(?:e\d+)?)f?(?![\w.])"


def header(name: str) -> str:
    """Return a header of csrc/common without its comments."""
    return re.sub(r"//.*", "", (CSRC / "common" / name).read_text())


def value(text: str, name: str) -> float:
    """Return the number that `name` is defined as in C++."""
    (found,) = re.findall(rf"\b{name}\s*=\s*{NUMBER}", text)
    return float(found)


@cache
def sources() -> dict[str, str]:
    """Return the text of each file of csrc."""
    files = (path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
    return {path.name: path.read_text() for path in files}


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contract_has_the_same_numbers_in_both_languages(name: str) -> None:
    assert value(header("contract.h"), CONTRACT[name]) == getattr(codes, name)


@pytest.mark.parametrize("name", LIMITS)
def test_the_range_limits_are_the_same_in_both_languages(name: str) -> None:
    (text,) = re.findall(r"struct Limits<float> \{(.*?)\};", header("limits.h"), re.DOTALL)
    assert value(text, LIMITS[name]) == getattr(codes, name)


def test_the_table_of_activations_is_the_same_in_both_languages() -> None:
    text = header("activation.h")
    (members,) = re.findall(r"enum class Activation[^{]*\{([^}]*)\}", text)
    enum = {name: int(code) for name, code in re.findall(r"(\w+) = (\d+)", members)}
    rows = re.findall(
        rf"\{{Activation::(\w+), \"(\w+)\", Family::(\w+), {NUMBER}, {NUMBER}\}}", text
    )
    assert all(member == name for member, name, *_ in rows)
    table = [(name, enum[name], family, float(g), float(s)) for name, _, family, g, s in rows]
    assert table == [tuple(f) for f in ACTIVATIONS.values()]


def test_every_activation_has_its_type_and_its_formula() -> None:
    assert get_args(ActivationName) == tuple(ACTIVATIONS) == tuple(FUNCTIONS)
    assert [f.code for f in ACTIVATIONS.values()] == list(range(len(ACTIVATIONS)))
    assert all(f.gain == f.span == 1 for f in ACTIVATIONS.values() if f.family == "pointwise")


@pytest.mark.parametrize("name", [*CONTRACT.values(), *LIMITS.values(), *ACTIVATIONS])
def test_cpp_defines_it_once(name: str) -> None:
    """No other file gives the name a number: quad, or kQuad."""
    kernels = "k" + name.title().replace("_", "")
    number = "[1-9]" if name in LIMITS.values() else r"\d"  # `int quad = 0` counts in a loop
    own = re.compile(rf"\b({name}|{kernels})\s*=\s*{number}")
    found = [name for name, text in sources().items() if own.search(text)]
    assert len(found) == 1, f"{name} is defined in {found}"


@pytest.mark.parametrize("name", [*CONTRACT, *LIMITS])
def test_python_defines_it_once(name: str) -> None:
    assert numbers(name) == [CODES]


@cache
def nodes() -> list[tuple[Path, ast.AST]]:
    """Return all syntax nodes of the folders below nn, with their file."""
    files = (path for room in ROOMS for path in (PACKAGE / room).rglob("*.py"))
    return [(path, node) for path in files for node in ast.walk(ast.parse(path.read_text()))]


def numbers(name: str) -> list[Path]:
    """Return the files that give `name` a number."""
    found = []
    for path, node in nodes():
        if isinstance(node, ast.Assign):
            literals = [x.value for x in ast.walk(node.value) if isinstance(x, ast.Constant)]
            targets = [x for target in node.targets for x in ast.walk(target)]
            named = any(isinstance(x, ast.Name) and x.id == name for x in targets)
            if named and any(isinstance(x, int | float) for x in literals):
                found.append(path)
    return found


def test_nothing_below_nn_names_an_activation_but_its_own_files() -> None:
    """Kernels are chosen by family; only the default "tanh" is named."""
    own = {CODES, PACKAGE / "ops/formula.py", PACKAGE / "backends/triton/device/maths.py"}
    named = {f.name for f in ACTIVATIONS.values()} - {"tanh"}
    for path, node in nodes():
        if path not in own and isinstance(node, ast.Constant) and node.value in named:
            raise AssertionError(f"{path}:{node.lineno} names {node.value!r}")
