"""Word what commands print, and print it whatever the encoding of the terminal."""

from __future__ import annotations

import codecs
import io
import sys

NEAREST = {"µ": "u", "–": "-", "…": "...", "×": "x"}


def count(number: int, noun: str) -> str:
    """Format a number with its noun: 1 character, 65,536 characters."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Replace the bytes of a file name that are no text."""
    return text.encode("utf-8", "replace").decode()


def tolerate_any_encoding() -> None:
    """Let standard output replace what its encoding lacks, instead of raising after hours."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="attnkernels.nearest")


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(NEAREST.get(character, "?") for character in lost), error.end


codecs.register_error("attnkernels.nearest", _nearest)
