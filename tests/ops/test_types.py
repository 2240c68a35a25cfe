"""The types of public calls, as mypy sees them."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import attnkernels

api = pytest.importorskip("mypy.api", reason="mypy comes with attnkernels[dev]")
ROOT = Path(__file__).resolve().parents[2]
CALLS = Path(__file__).with_name("users_calls.py")


def problems(path: Path) -> list[str]:
    """Return mypy's errors in one file; an unused `type: ignore` counts as one."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary"]
    report, complaints, _ = api.run([*options, str(path)])
    assert not complaints, complaints
    return [line for line in report.splitlines() if f"{path.name}:" in line and "error:" in line]


def test_users_calls_have_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert problems(Path("tests/ops/users_calls.py")) == []


def test_a_wrong_type_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    wrong = CALLS.read_text().replace(
        "assert_type(memory.attend(q), Tensor)", "assert_type(memory.attend(q), Pair)"
    )
    path = tmp_path / "wrong.py"
    path.write_text(wrong)
    (error,) = problems(path)
    assert 'Expression is of type "Tensor"' in error


@pytest.mark.parametrize("name", sorted(set(attnkernels.__all__) - {"__version__"}))
def test_no_public_function_returns_any(name: str) -> None:
    public = getattr(attnkernels, name)
    members = {name: public} if inspect.isfunction(public) else vars(public)
    functions = [x for n, x in members.items() if inspect.isfunction(x) and not n.startswith("_")]
    for function in functions:
        returned = inspect.signature(function).return_annotation
        assert returned is not inspect.Parameter.empty and "Any" not in str(returned)
