"""Draw text of any script verbatim."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

# Characters that would be invisible or would break a line.
VISIBLE = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥"})
PLACEHOLDERS = "Last Resort"  # matplotlib's font of placeholder boxes


def as_given(texts: Iterable[str]) -> dict[str, Any]:
    """Return the properties of a matplotlib text that shows `texts` verbatim.

    A "$" is a dollar sign, not the start of a formula. Characters missing from the default font
    come from other installed fonts; matplotlib warns about those that no font has, and draws boxes.
    """
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
