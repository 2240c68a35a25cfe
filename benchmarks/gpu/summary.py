"""Summarize a run of benchmarks.gpu on one page, from the files in its folder."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from attnkernels.measure import files
from attnkernels.measure.busy import sentence
from attnkernels.profile.units import show_mib
from benchmarks.gpu import pairs as gpu_pairs
from benchmarks.gpu import predicted
from benchmarks.suite.rates import BYTES, Result, about, machine, spreads
from benchmarks.suite.run import default_name
from benchmarks.suite.table import rich_table
from tools.sanitizer import tool as gpu_sanitizer

WIDTH = 170


def summary(folder: Path, notes: list[str]) -> str:
    """Return the page, with failures first, and write it to summary.txt."""
    written = io.StringIO()
    show(Console(file=written, width=WIDTH, highlight=False, markup=False), folder, notes)
    files.write(folder / "summary.txt", written.getvalue())
    return written.getvalue()


def show(console: Console, folder: Path, notes: list[str]) -> None:
    """Print the page, as wide as the console."""
    for part in filter(None, _parts(folder, notes)):
        console.print(part, soft_wrap=isinstance(part, str))
        console.print()


def _parts(folder: Path, notes: list[str]) -> list[RenderableType]:
    parts: list[RenderableType] = ["\n".join(notes)]
    result = _json(folder / "results.json")
    if result:
        parts += [_head(result), _check(result), _ceiling(result)]
    parts.append(_tests(folder))
    if result and result["cases"]:
        parts += [*rich_table(result), sentence(None, spreads(result)) or ""]
        parts += [about(result), *_long(result), predicted.beside(result)]
        if pairs := gpu_pairs.tables(result):
            parts += [*pairs, gpu_pairs.ABOUT, gpu_pairs.preferences(result)]
    parts.append(gpu_sanitizer.report(folder, (result or {}).get("sanitizer", {})))
    parts += [_absent(folder / "absent.json"), *_sweep(folder)]
    if result and result["cases"]:
        name = f"benchmarks/results/{default_name(result)}"
        parts.append(
            f"For the README: copy results.json to {name}, then python -m benchmarks.suite.table"
        )
    return parts


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _head(result: Result) -> str:
    code = f"torch {result['torch']}, commit {result['commit'] or 'unknown'}, {result['date']}"
    return f"{machine(result)}, {code}"


def _ceiling(result: Result) -> str:
    known = "\n".join(f"  {name}: {value:g}" for name, value in result["ceiling"].items())
    return f"ceilings\n{known}" if known else "ceilings: not measured"


def _check(result: Result) -> str:
    """Report the largest error of each backend, and every call that is wrong."""
    lines = []
    for name, found in result.get("check", {}).items():
        right = [error for error in found.values() if not isinstance(error, str)]
        least = f", at most {max(right):.2f} of what is allowed" if right else ""
        lines.append(f"  {name}: {len(right)} of {len(found)} calls are right{least}")
        others: dict[str, list[str]] = {}
        for call, why in found.items():
            if isinstance(why, str):
                others.setdefault(why, []).append(call)
        lines += [f"    {why} ({'; '.join(calls)})" for why, calls in others.items()]
    return "\n".join(["check", *lines]) if lines else "check: not run"


def _tests(folder: Path) -> str:
    """Report the counts and failures of each backend, or the progress of an unfinished run."""
    said = folder / "tests.txt"
    if not said.exists():
        return "tests: not run"
    parts = re.split(r"^== (\w+)$", said.read_text(encoding="utf-8", errors="replace"), flags=re.M)
    return "\n".join(map(_tested, parts[1::2], parts[2::2]))


def _tested(name: str, said: str) -> str:
    lines = said.strip().splitlines()
    ended = [line[1] for each in lines if (line := re.fullmatch(r"=+ (.*) in [\d.]+s.* =+", each))]
    counts = ended[-1] if ended else "they did not end"
    bad = [f"  {line}" for line in lines if line.startswith(("FAILED", "ERROR", "Stopped"))]
    last = [] if ended else [f"  {line}" for line in lines[-5:]]
    return "\n".join([f"tests of {name}: {counts}", *bad, *_skipped(lines), *last])


def _skipped(lines: list[str]) -> list[str]:
    """Return each reason in pytest's lines "SKIPPED [count] file:line: reason" once."""
    reasons: Counter[str] = Counter()
    for line in lines:
        found = re.fullmatch(r"SKIPPED \[(\d+)\] \S+: (.*)", line)
        if found:
            reasons[found[2]] += int(found[1])
    return [f"  skipped, {count} x: {why}" for why, count in reasons.items()]


def _long(result: Result) -> list[str]:
    """Report the memory of long sequences, beside that of their inputs."""
    said = []
    for row in result["cases"]:
        if row["case"] == "gpu-long":
            batch, n, m, d, dv = row["shape"]
            size = BYTES[row["dtype"]] * (batch * (n * d + m * d + m * dv) + d)
            naive = BYTES[row["dtype"]] * batch * n * m * d
            said.append(
                f"{row['case']}: {row['provider']} takes {show_mib(row['peak_mib'])} above its "
                f"inputs, which are {show_mib(size / 2**20)}; the tensor of the formula would be "
                f"{show_mib(naive / 2**20)}"
            )
    return said


def _absent(path: Path) -> str:
    """List each reason once, with the number of measurements it prevented."""
    reasons = Counter((row["provider"], row["why"]) for row in _json(path) or [])
    lines = [f"  {name}, {count} x: {why}" for (name, why), count in reasons.items()]
    return "\n".join(["not measured", *lines]) if lines else ""


def _sweep(folder: Path) -> list[str]:
    """List the candidates by case, the fastest first."""
    result = _json(folder / "sweep.json") or {"cases": []}
    cases: dict[str, list[tuple[float, str]]] = {}
    for row in result["cases"]:
        case = f"{row['case']} {row['direction']} {row['dtype']}"
        cases.setdefault(case, []).append((row["median_ms"], row["provider"]))
    lines = [
        f"  {case}: " + ", ".join(f"{name} {ms:.4g} ms" for ms, name in sorted(found))
        for case, found in cases.items()
    ]
    return ["\n".join(["sweep", *lines])] if lines else []
