"""Every public name has a docstring and is on a page of docs/api."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import attnkernels

ROOT = Path(__file__).resolve().parents[2]
spec = spec_from_file_location("docs_hooks_names", ROOT / "docs" / "hooks" / "names.py")
assert spec is not None and spec.loader is not None
names = module_from_spec(spec)
spec.loader.exec_module(names)


def test_every_public_name_is_documented() -> None:
    assert names.undocumented(names.public_names(), names.documented()) == []


def test_public_names_are_found() -> None:
    found = names.public_names()
    assert found["attnkernels.additive_attention"] is attnkernels.additive_attention
    for module in ("distributed", "nn", "models", "interop", "viz", "info", "testing"):
        assert any(name.startswith(f"attnkernels.{module}.") for name in found), module


def test_a_missing_page_and_a_missing_docstring_are_found() -> None:
    def silent() -> None: ...

    problems = names.undocumented({"x.silent": silent, "x.max": max}, {"x.silent"})
    assert problems == ["x.max is on no page of docs/api", "x.silent has no docstring"]


def test_a_name_taken_from_a_page_is_missed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "api" / "viz.md").read_text(encoding="utf-8")
    (tmp_path / "viz.md").write_text(page.replace("::: attnkernels.viz.plot_cost\n", ""))
    known = names.documented(tmp_path)
    missing = names.undocumented(names.public_names([".viz"]), known)
    assert missing == ["attnkernels.viz.plot_cost is on no page of docs/api"]


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "api").glob("*.md")), ids=lambda p: p.name)
def test_pages_document_what_exists(page: Path) -> None:
    public = set().union(*(names.spellings(*each) for each in names.public_names().items()))
    documented = re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in documented if name not in public] == []
