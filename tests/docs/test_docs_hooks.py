"""The hooks of `make docs`: formulas without scripts, shapes as code, a strict end."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


def hook(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a hook as the generator does, with its folder on the path."""
    for needed in ("mkdocs", "latex2mathml", "griffe"):
        pytest.importorskip(needed, reason="the extra docs is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module(name)


def test_a_formula_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    formula = hook("formulas", monkeypatch).formula(r"s = \sum_t w_t \tag{E1}", block=True)
    assert 'id="E1"' in formula and "(E1)" in formula and "<math" in formula


def test_an_unknown_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="does not know"):
        hook("formulas", monkeypatch).formula(r"\nosuchcommand x", block=False)


def test_citations_become_links(monkeypatch: pytest.MonkeyPatch) -> None:
    cite = hook("formulas", monkeypatch).cite
    html = "<p>by (E7), <code>(E1)</code> and (E99)</p>"
    linked = '<p>by (<a href="math.html#E7">E7</a>), <code>(E1)</code> and (E99)</p>'
    assert cite(html, "math.html") == linked


def test_shapes_are_code_and_not_emphasis(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = hook("shapes", monkeypatch).marked
    assert marked("(*L, n, m), lse (*L, n)") == "`(*L, n, m)`, lse `(*L, n)`"
    assert marked("Returns:\n    (B, m): the weights") == "Returns:\n    (B, m): the weights"
    assert marked("(E1) f(q) (see there)") == "(E1) f(q) (see there)"


def test_a_page_that_loads_from_the_network_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = hook("strict", monkeypatch)
    monkeypatch.setattr(strict, "public_names", dict)
    page = tmp_path / "page.html"
    page.write_text('<a href="https://x.org">x</a><script src="a.js"></script>')
    strict.on_post_build(SimpleNamespace(site_dir=tmp_path))
    page.write_text('<script src="https://x.org/a.js"></script>')
    with pytest.raises(Exception, match="page.html loads https://x.org/a.js"):
        strict.on_post_build(SimpleNamespace(site_dir=tmp_path))
