"""Types of calls to modules, checked by mypy over a file of users' calls."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_checker_knows_what_calls_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every assert_type holds, and no ignore is unused: wrong calls are errors."""
    api = pytest.importorskip("mypy.api")
    monkeypatch.chdir(ROOT)  # where pyproject.toml and the package are
    report, problems, status = api.run(["tests/nn/users_calls.py"])
    assert status == 0, report + problems
