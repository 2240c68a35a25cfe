"""Turn the formulas of a page into MathML while the site is built, so that browsers need no script.

Pages write ``$...$`` and fences of ``math``, which GitHub renders too; pymdownx.arithmatex marks
them. A `\\tag{E1}` becomes a number at the right and the anchor ``#E1``, and every "(E1)" in the text
of the same page a link to it.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL)
TAG = re.compile(r"\\tag\{(\w+)\}")
ROMAN = re.compile(r"\\mathrm\{(\w)\}")
CITED = re.compile(r"\(E(\d+)\)")
MARKUP = re.compile(r"(<pre.*?</pre>|<code.*?</code>|<math.*?</math>|<a .*?</a>|<[^>]+>)", re.DOTALL)
FENCE = re.compile(r"\\(lfloor|rfloor|lvert|rvert)\b")
ACCENTS = {"<mover><": '<mover accent="true"><'}


def on_page_content(html: str, **_: Any) -> str:
    """Replace the formulas of a page, and link its citations of equations."""
    html = FORMULA.sub(lambda found: formula(unescape(found[3]), block=found[1] == "div"), html)
    numbers = set(re.findall(r'class="equation" id="E(\d+)"', html))
    return cite(html, numbers) if numbers else html


def formula(latex: str, *, block: bool) -> str:
    """Return the MathML of a formula; in a block with its number, where it has one."""
    tag = TAG.search(latex)
    mathml = convert(TAG.sub("", latex).strip(), display="block" if block else "inline")
    mathml = mathml.replace("<mover><", '<mover accent="true"><')
    mathml = re.sub(r"<mi>&#x000(64);</mi>", r'<mi mathvariant="normal">&#x000\1;</mi>', mathml)
    if not block:
        return mathml
    anchor = f' id="{tag[1]}"' if tag else ""
    number = f'<span class="number">({tag[1]})</span>' if tag else ""
    return f'<div class="equation"{anchor}><div class="formula">{mathml}</div>{number}</div>'


def cite(html: str, numbers: set[str]) -> str:
    """Link every "(E1)" in running text to its equation."""

    def link(found: re.Match[str]) -> str:
        number = found[1]
        return f'(<a href="#E{number}">E{number}</a>)' if number in numbers else found[0]

    parts = MARKUP.split(html)
    inside_number = False
    for place, part in enumerate(parts):
        if place % 2:
            inside_number = part == '<span class="number">'
        elif not inside_number:
            parts[place] = CITED.sub(link, part)
    return "".join(parts)
