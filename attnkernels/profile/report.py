"""Report a sweep as a table, a sentence, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.text import Text

from ..measure import files
from ..measure.wording import count
from .sweep import Row
from .tables import Table
from .units import show_mib, show_ms, show_rate, show_ratio

STYLES = {"naive": "dark_orange", "compile": "magenta", "fused": "dodger_blue1", "window": "green"}
NOTHING = Text("–", style="dim")

Cells = dict[tuple[int, str], Row]


def by_cell(rows: Iterable[Row]) -> Cells:
    return {(row.length, row.method): row for row in rows}


def ratio(slow: Row | None, fast: Row | None, field: str) -> float | None:
    """Return `field` of `slow` over that of `fast`; None unless both were measured."""
    over, under = getattr(slow, field, None), getattr(fast, field, None)
    return over / under if over and under else None


def table(
    title: str,
    lengths: list[int],
    names: list[str],
    rows: list[Row],
    ceilings: Mapping[str, float] | None = None,
) -> Table:
    """Make the table: one line per length reached, and three columns per method.

    If clocks were counted, one more column has the elements per clock of the fused operator, and
    the caption has the `ceilings` to compare it with.
    """
    clocks = any(row.elements_per_clock is not None for row in rows)
    cells = by_cell(rows)
    drawn = Table(title=escape(title), title_style="bold")
    drawn.add_column("\nlength", justify="right")
    for name in names:
        for heading in ("time", "memory", "G/s"):
            drawn.add_column(f"{name}\n{heading}", justify="right", header_style=STYLES[name])
    if clocks:
        drawn.add_column("/clock\n/SM", justify="right", header_style=STYLES["fused"])
    others = [name for name in names if name not in ("fused", "window")]
    for name in others:
        heading = "times\nfaster" if name == "naive" else f"than\n{name}"
        drawn.add_column(heading, justify="right", style="bold green")
    drawn.add_column("less\nmemory", justify="right", style="bold green")
    if "window" in names:
        drawn.add_column("window\nfaster", justify="right", style="bold green")

    for length in lengths:
        reached = [cells.get((length, name)) for name in names]
        if not any(reached):
            break
        line: list[str | Text] = [f"{length:,}"]
        for row in reached:
            line += _measurement(row)
        fused = cells.get((length, "fused"))
        if clocks:
            achieved = fused.elements_per_clock if fused is not None else None
            line.append(NOTHING if achieved is None else show_rate(achieved))
        for name in others:
            line.append(_show(ratio(cells.get((length, name)), fused, "ms")))
        line.append(_show(ratio(cells.get((length, "naive")), fused, "peak_mib")))
        if "window" in names:
            line.append(_show(ratio(fused, cells.get((length, "window")), "ms")))
        drawn.add_row(*line)
    notes = ["G/s: 10^9 elements (i, j, t) per second"]
    if clocks:
        notes.append("/clock/SM: elements per clock per SM")
        if ceilings:
            limits = ", ".join(f"{most:g} with {how}" for how, most in ceilings.items())
            notes[-1] += f"; at most {limits}"
    if any(row.skipped for row in rows):
        notes.append("~ extrapolated, not run")
    if any(row.does_not_fit for row in rows):
        notes.append("! needs that much, does not fit")
    drawn.caption = "\n".join(notes)
    return drawn


def _measurement(row: Row | None) -> list[str | Text]:
    """Format the time, memory and rate of one method at one length."""
    if row is None:
        return [NOTHING] * 3
    if row.ms is not None and row.peak_mib is not None:
        return [show_ms(row.ms), show_mib(row.peak_mib), show_rate(row.g_elements_per_s or 0)]
    time = memory = NOTHING
    if row.estimated_ms is not None:
        time = Text(f"~{show_ms(row.estimated_ms)}", "dim")
    if row.estimated_mib is not None:
        mark, style = ("!", "red") if row.does_not_fit else ("~", "dim")
        memory = Text(mark + show_mib(row.estimated_mib), style)
    return [time, memory, NOTHING]


def _show(factor: float | None) -> str | Text:
    return NOTHING if factor is None else show_ratio(factor)


def sentence(rows: list[Row], dim: int, backward: bool, window: int | None = None) -> str:
    """Say which length the fused operator reached, and how others compare where both ran."""
    cells = by_cell(rows)
    fused = [row for row in rows if row.method == "fused" and row.ms is not None]
    if not fused:
        return "Nothing was measured."
    longest = fused[-1]
    assert longest.ms is not None and longest.peak_mib is not None
    passes = "forward and backward" if backward else "forward"
    said = (
        f"The fused operator attended {count(longest.length, 'character')} to {longest.length:,} "
        f"({passes}, width {dim}) in {show_ms(longest.ms)} with {show_mib(longest.peak_mib)} "
        "of extra memory"
    )
    naive = cells.get((longest.length, "naive"))
    if naive is not None and naive.skipped is not None and naive.estimated_mib is not None:
        said += f", where the naive formula would need {show_mib(naive.estimated_mib)}"
    said += "."
    for row in reversed(fused):
        other = cells.get((row.length, "naive"))
        faster, smaller = ratio(other, row, "ms"), ratio(other, row, "peak_mib")
        if faster and smaller:
            said += (
                f" At {row.length:,}, the longest that both ran, it was {show_ratio(faster)} "
                f"faster and took {show_ratio(smaller)} less memory."
            )
            break
    last = next((r for r in reversed(rows) if r.method == "window" and r.ms is not None), None)
    if last is not None and last.ms is not None and last.peak_mib is not None:
        said += (
            f" In a window of {window:,} to both sides, {count(last.length, 'character')} took "
            f"{show_ms(last.ms)} and {show_mib(last.peak_mib)}"
        )
        faster = ratio(cells.get((last.length, "fused")), last, "ms")
        said += f", {show_ratio(faster)} faster than all pairs." if faster else "."
    return said


def write_json(path: Path, head: dict[str, Any], rows: list[Row]) -> None:
    """Write the rows below the head, as one object."""
    content = {**head, "rows": [asdict(row) for row in rows]}
    files.write(path, json.dumps(content, indent=1) + "\n")
