"""Give the site the part of a font that formulas need: few systems have one with a MATH table.

The
font is STIX Two Math (SIL Open Font License), from the package ziamath.
"""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from mkdocs.structure.files import File, Files

NEEDED = (
    range(0x20, 0x7F),  # Latin
    range(0xA0, 0x100),
    range(0x2B0, 0x310),  # accents
    range(0x370, 0x400),  # Greek
    range(0x2000, 0x2070),  # primes and spaces
    range(0x2100, 0x2150),  # letters such as the script l
    range(0x2190, 0x2300),  # arrows and operators
    range(0x2308, 0x230C),  # floor and ceiling
    range(0x1D434, 0x1D468),  # italic Latin
    range(0x1D6A4, 0x1D71C),  # italic Greek and dotless letters
)


def on_files(files: Files, config: Any) -> Files:
    """Add the font that assets/extra.css names."""
    files.append(File.generated(config, "assets/math.woff", content=subset()))
    return files


def subset() -> bytes:
    """Return the needed glyphs with their metrics for formulas, as a WOFF file."""
    package = find_spec("ziamath")
    assert package is not None and package.origin is not None, "pip install ziamath"
    font = TTFont(Path(package.origin).parent / "fonts" / "STIXTwoMath-Regular.ttf")
    options = Options(layout_features=["ssty"], flavor="woff", notdef_outline=True)
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=[code for codes in NEEDED for code in codes])
    subsetter.subset(font)
    font.flavor = "woff"
    written = BytesIO()
    font.save(written)
    return written.getvalue()
