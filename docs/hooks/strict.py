"""Fail the build if a public name has no documentation, or a page loads from the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from names import documented, public_names, spellings, undocumented

LOADED = re.compile(
    r"<(?:script|img|iframe|link rel=\"(?:stylesheet|preconnect|icon)\")[^>]*"
    r"(?:src|href)=\"?((?:https?:)?//[^\" >]+)"
)


def on_pre_build(config: Any) -> None:
    """Compare the public names with the pages of the API."""
    if problems := undocumented(public_names(), documented()):
        raise PluginError("\n".join(problems))


def on_post_build(config: Any) -> None:
    """Check the written pages: each must work without a network, and contain its names."""
    site = Path(config.site_dir)
    pages = {page: page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.html"))}
    problems = [
        f"{page.relative_to(site)} loads {url}"
        for page, html in pages.items()
        for url in LOADED.findall(html)
    ]
    api = "".join(html for page, html in pages.items() if "api" in page.relative_to(site).parts)
    problems += [
        f"{name} has no heading on the pages of the API"
        for name, each in public_names().items()
        if not any(f'id="{spelling}"' in api for spelling in spellings(name, each))
    ]
    if problems:
        raise PluginError("\n".join(problems))
