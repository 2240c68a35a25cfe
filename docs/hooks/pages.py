"""Add to the site the pages that are written elsewhere: CONTRIBUTING, CHANGELOG and benchmarks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from posixpath import relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ABOVE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
ABOVE_LINK = re.compile(r"\]\((?:\.\./)+(" + "|".join(map(re.escape, ABOVE)) + r")(#[\w-]+)?\)")


def on_config(config: Any) -> Any:
    """List the results in the navigation, below their contents."""
    section = next(each["Benchmarks"] for each in config.nav if "Benchmarks" in each)
    section += [{title(stem): f"benchmarks/{stem}.md"} for stem in stems()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Generate the pages, so that links to them are checked like any other."""
    for source, page in ABOVE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=from_root(text)))
    for stem in stems():
        files.append(File.generated(config, f"benchmarks/{stem}.md", content=benchmark(stem)))
    files.append(File.generated(config, "benchmarks/index.md", content=contents(stems())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to files above docs/ at the pages that are made of them."""

    def link(found: re.Match[str]) -> str:
        folder = page.file.src_uri.rpartition("/")[0] or "."
        return f"]({relpath(ABOVE[found[1]], folder)}{found[2] or ''})"

    return ABOVE_LINK.sub(link, markdown)


def from_root(text: str) -> str:
    """Rewrite the links of a file beside docs/ as those of a page inside it."""
    text = text.replace("](docs/", "](")
    for source, page in ABOVE.items():
        text = text.replace(f"]({source}", f"]({page}")
    return re.sub(r"\[([^\]]+)\]\((?:LICENSE|README\.md)\)", r"\1", text)


def stems() -> list[str]:
    """Return the names of the results without their suffix, the newest first."""
    return sorted((path.stem for path in RESULTS.glob("*.json")), reverse=True)


def contents(results: list[str]) -> str:
    """Return the page that lists the results."""
    lines = [f"- [{title(stem)}]({stem}.md)" for stem in results]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Each page is one run of the suite, `python -m benchmarks.suite`, the newest first.",
            "[Reading a benchmark](../howto/benchmarks.md) explains the columns.",
            "",
            *(lines or ["Not measured yet."]),
            "",
            "GPUs are not measured yet: `python -m benchmarks.gpu --out DIR` measures one.",
        ]
    )


def title(stem: str) -> str:
    """Return the title of a result: its date, and the device."""
    return f"{stem[:10]}, {stem[11:].replace('-', ' ')}"


def benchmark(stem: str) -> str:
    """Return the page of one result."""
    try:
        from benchmarks.suite import table
    except ImportError:  # before the suite had a folder of its own
        from benchmarks import table
    result = json.loads((RESULTS / f"{stem}.json").read_text(encoding="utf-8"))
    return (
        f"# {title(stem)}\n\n{table.markdown(result)}\n\n"
        "[Reading a benchmark](../howto/benchmarks.md) explains the columns.\n"
    )
