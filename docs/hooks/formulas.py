"""Turn the formulas of a page into MathML while the site is built, so that browsers need no script.

Pages write ``$...$`` and fences of ``math``, which GitHub renders too; pymdownx.arithmatex marks
them. A `\\tag{E1}` becomes a number at the right and the anchor ``#E1``, and every
"(E1)" in the text of any page becomes a link to it.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from posixpath import relpath
from typing import Any

from latex2mathml.converter import convert

MATHEMATICS = Path(__file__).resolve().parents[1] / "math.md"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)
TAG = re.compile(r"\\tag\{(\w+)\}")
CITED = re.compile(r"\(E(\d+)\)")
FUNCTION = r"(?:exp|log|max|min|tanh)"
MENDED = (  # browsers space and size these differently from TeX
    (r"<mover><", '<mover accent="true"><'),
    (r"<mi>&#x00064;</mi>", '<mi mathvariant="normal">d</mi>'),  # \\mathrm{d}
    (
        r"<msup>(<mi>[^<]*</mi>)<mi>(&#x02032;)</mi></msup>",
        r'<mrow>\1<mo lspace="0" rspace="0">\2</mo></mrow>',
    ),
    (r"<mo[^>]*>&#x0007C;</mo>", '<mo lspace="0" rspace="0" stretchy="false">|</mo>'),
    (r"<mo>&#x0221E;</mo>", "<mi>&#x0221E;</mi>"),
    (
        r"((?:=|&#x0003D;|,|&#x0002C;)</mo>)<mo>&#x02212;</mo>",
        r'\1<mo form="prefix">&#x02212;</mo>',
    ),
    (rf"<mo>({FUNCTION})</mo>", r"<mi>\1</mi>"),
    (rf"(?<!<msu[bp]>)(<mi>{FUNCTION}</mi>)(?=<m(?:[in]|su[bp])>)", r'\1<mspace width="0.17em"/>'),
    (rf"(</msu[bp]>)(<mi>{FUNCTION}</mi>)", r'\1<mspace width="0.17em"/>\2'),
    (r"(<msub><mi>log</mi>.*?</msub>)", r'<mspace width="0.17em"/>\1<mspace width="0.17em"/>'),
)
MARKUP = re.compile(
    r"(<pre.*?</pre>|<code.*?</code>|<math.*?</math>|<a .*?</a>|<[^>]+>)", re.DOTALL
)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Replace the formulas of a page, and link its citations of equations."""
    html = FORMULA.sub(lambda found: formula(unescape(found[3]), block=found[1] == "div"), html)
    folder = page.file.src_uri.rpartition("/")[0]
    mathematics = "" if page.file.src_uri == "math.md" else relpath("math.html", folder or ".")
    return cite(html, mathematics)


def equations() -> set[str]:
    """Return the numbers of the equations of docs/math.md."""
    return set(re.findall(r"\\tag\{E(\d+)\}", MATHEMATICS.read_text(encoding="utf-8")))


def formula(latex: str, *, block: bool) -> str:
    """Return the MathML of a formula; in a block, with its number if it has one."""
    tag = TAG.search(latex)
    mathml = convert(TAG.sub("", latex).strip(), display="block" if block else "inline")
    assert "\\" not in mathml, f"latex2mathml does not know all of {latex}"
    for wrong, right in MENDED:
        mathml = re.sub(wrong, right, mathml)
    if not block:
        return mathml
    anchor = f' id="{tag[1]}"' if tag else ""
    number = f'<span class="number">({tag[1]})</span>' if tag else ""
    return f'<div class="equation"{anchor}><div class="formula">{mathml}</div>{number}</div>'


def cite(html: str, page: str) -> str:
    """Link every "(E1)" in running text to its equation on a page."""
    numbers = equations()

    def link(found: re.Match[str]) -> str:
        number = found[1]
        return f'(<a href="{page}#E{number}">E{number}</a>)' if number in numbers else found[0]

    parts = MARKUP.split(html)
    inside_number = False
    for place, part in enumerate(parts):
        if place % 2:
            inside_number = part == '<span class="number">'
        elif not inside_number:
            parts[place] = CITED.sub(link, part)
    return "".join(parts)
