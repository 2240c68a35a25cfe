"""Add to the site the pages that are written elsewhere: CONTRIBUTING, CHANGELOG and benchmarks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from posixpath import relpath
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ABOVE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
HELP = re.compile(r"^<!-- help: ([\w.]+) -->$", re.MULTILINE)
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
        files.append(File.generated(config, f"benchmarks/{stem}.png", content=picture(stem)))
    files.append(File.generated(config, "benchmarks/index.md", content=contents(stems())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to files above docs/ at their pages, and show the help of commands."""
    markdown = HELP.sub(lambda found: f"```text\n{help_of(found[1])}```", markdown)

    def link(found: re.Match[str]) -> str:
        folder = page.file.src_uri.rpartition("/")[0] or "."
        return f"]({relpath(ABOVE[found[1]], folder)}{found[2] or ''})"

    return ABOVE_LINK.sub(link, markdown)


def help_of(module: str) -> str:
    """Return the output of `python -m module --help`."""
    command = [sys.executable, "-m", module, "--help"]
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout


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


def read(stem: str) -> dict[str, Any]:
    """Return a result."""
    return json.loads((RESULTS / f"{stem}.json").read_text(encoding="utf-8"))


def title(stem: str) -> str:
    """Return the title of a result: its date, and the device."""
    return f"{stem[:10]}, {suite('rates').machine(read(stem))}"


def benchmark(stem: str) -> str:
    """Return the page of one result; its table takes the place of the columns at the sides."""
    return f"""---
hide: [navigation, toc]
---
# {title(stem)}

<div class="benchmark" markdown>

{suite("table").markdown(read(stem))}

</div>

[Reading a benchmark](../howto/benchmarks.md) explains the columns. [All results](index.md).

![Times faster than eager PyTorch, case by case]({stem}.png)
"""


def picture(stem: str) -> bytes:
    """Return the picture of one result, a PNG."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.png"
        suite("plot").draw(path, read(stem))
        return path.read_bytes()


def suite(name: str) -> ModuleType:
    """Import a module of the benchmarks' suite, which is not installed."""
    return import_module(f"benchmarks.suite.{name}")
