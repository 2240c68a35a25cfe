"""Prepare docstrings for Markdown: shapes become code, and several names stay one entry."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SHAPE = re.compile(
    r"(?<![\w`.])\((?:\.\.\.|\*\w+|[BLRT]|[dmn])(?:,[^()\n`]*| \* [^()\n`]*)?\)(?!:)"
)
NAMES = re.compile(r"^( +\w+(?:, \w+)+):", re.MULTILINE)


class Shapes(Extension):
    """Rewrite docstrings before they are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = marked(obj.docstring.value)


def marked(text: str) -> str:
    """Return the text with its shapes in backticks, which protects "(*L, n, m)" from emphasis.

    Names before a colon ("query_dim, key_dim: ...") are held together by spaces that do not break.
    """
    text = NAMES.sub(lambda found: found[1].rstrip().replace(", ", ",\u00a0") + ":", text)
    return SHAPE.sub(lambda found: f"`{found[0]}`", text)
