"""Docstrings open with a verb or a noun, never with a question word."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("attnkernels", "benchmarks", "examples", "tests", "tools")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
FILES += sorted(ROOT.glob("*.py"))
QUESTIONS = {"what", "who", "whose", "whether", "where", "how"}


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def opening(text: str) -> str:
    """Return the first word, in lower case and without punctuation."""
    words = text.split(maxsplit=1)
    return words[0].strip("`*\"'(),.:;").lower() if words else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_open_with_a_verb_or_a_noun(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for line, text in docstrings(path.read_text(encoding="utf-8"))
        if opening(text) in QUESTIONS
    ]
    assert not found, "\n".join(found)
