"""Draw text of any script verbatim."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from unicodedata import bidirectional, east_asian_width

import matplotlib
from matplotlib import ft2font
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

# Characters that would be invisible or would break a line.
VISIBLE = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥"})
SHAPES = hasattr(ft2font, "__libraqm_version__")  # lays text out in the order of its script
PLACEHOLDERS = "Last Resort"  # matplotlib's font of placeholder boxes


def as_given(texts: Iterable[str]) -> dict[str, Any]:
    """Return the properties of a matplotlib text that shows `texts` verbatim.

    A "$" is a dollar sign, not the start of a formula. Characters missing from the default font
    come from other installed fonts; matplotlib warns about those that no font has, and draws boxes.
    Before 3.11 it draws text that runs from right to left in the wrong order, which a warning says.
    """
    texts = list(texts)
    if not SHAPES and any(bidirectional(c) in ("R", "AL") for text in texts for c in text):
        warnings.warn(
            f"matplotlib {matplotlib.__version__} draws text that runs from right to left in the "
            "wrong order; 3.11 draws it right",
            stacklevel=3,
        )
    families = FontProperties().get_family()
    missing = frozenset(c for text in texts for c in text if not c.isspace())
    for family in families:
        missing -= _has(findfont(FontProperties(family=[family])), missing)
    return {
        "parse_math": False,
        "usetex": False,
        "fontfamily": [*families, *_families_with(missing)],
    }


def visible(token: str) -> str:
    """Replace line ends, tabs, and a token of spaces with visible signs."""
    return "␣" * len(token) if token.strip(" ") == "" else token.translate(VISIBLE)


def columns(text: str) -> int:
    """Return the width of the text in letters; an East Asian wide character counts as two."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def shortened(text: str, most: float) -> str:
    """Return the text, with an ellipsis in its middle if it is wider than `most` letters."""
    if columns(text) <= most:
        return text
    head = tail = ""
    for first, last in zip(text, reversed(text), strict=True):
        if columns(head + first + tail) >= most:
            break
        head += first
        if columns(head + last + tail) >= most:
            break
        tail = last + tail
    return f"{head}…{tail}"


def wrapped(text: str, most: float) -> str:
    """Return the text in lines of at most `most` letters, broken between words where possible."""
    lines = []
    for line in text.splitlines():
        letters = int(most * len(line) / max(1, columns(line)))  # half as many if they are wide
        lines += textwrap.wrap(line, max(1, letters)) if columns(line) > most else [line]
    return "\n".join(lines)


@lru_cache
def _families_with(missing: frozenset[str]) -> tuple[str, ...]:
    """Return installed families that together have these characters, the widest first."""
    has: dict[str, frozenset[str]] = {}
    for entry in fontManager.ttflist if missing else ():
        if not entry.name.startswith(PLACEHOLDERS):
            has[entry.name] = has.get(entry.name, frozenset()) | _has(entry.fname, missing)
    chosen = []
    while missing and has:
        best = max(sorted(has), key=lambda name: len(has[name] & missing))
        if not has.pop(best) & missing:
            break
        found = _has(
            findfont(FontProperties(family=[best])), missing
        )  # the file that matplotlib will use
        if found:
            chosen.append(best)
            missing -= found
    return tuple(chosen)


def _has(path: str, characters: frozenset[str]) -> frozenset[str]:
    try:
        font = get_font(path)
    except (OSError, RuntimeError):  # an installed file that FreeType cannot open
        return frozenset()
    return frozenset(c for c in characters if font.get_char_index(ord(c)))
