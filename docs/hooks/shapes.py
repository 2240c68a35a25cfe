"""Prepare docstrings for Markdown: shapes become code, and several names stay one entry."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SHAPE = re.compile(r"(?<![\w`.])\((?:\.\.\.|\*\w+|[BLRT]|[dmn])(?:,[^()\n`]*| \* [^()\n`]*)?\)")
NAMES = re.compile(r"^( +\w+(?:, \w+)+):", re.MULTILINE)


class Shapes(Extension):
    """Rewrite docstrings before they are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = marked(obj.docstring.value)


def marked(text: str) -> str:
    """Return the text with its shapes in backticks, which protects "(*L, n, m)" from emphasis.

    Names before a colon ("query_dim, key_dim: ...") are joined by non-breaking spaces.
    """
    text = NAMES.sub(lambda found: found[1].rstrip().replace(", ", ",\u00a0") + ":", text)

    def quoted(found: re.Match[str]) -> str:
        line = text[text.rfind("\n", 0, found.start()) + 1 :]
        is_type = line.lstrip().startswith(f"{found[0]}:")  # "(B, m): ..." below "Returns:"
        return found[0] if is_type else f"`{found[0]}`"

    return SHAPE.sub(quoted, text)
