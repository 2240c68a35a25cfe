"""The README's table, made from the newest result.

    python -m benchmarks.table [--check] [--readme FILE] [--results FOLDER]

--check changes nothing and fails where the README is not what the newest result makes it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from attnkernels.profiling.units import show_mib, show_ms, show_ratio
from benchmarks.ceiling import seconds

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
OURS = "native"
NOTHING = "–"

Result = dict[str, Any]


class Line(NamedTuple):
    """One case and direction as it is shown; the factors and the memory are those of `native`."""

    case: str
    shape: str
    direction: str
    times: dict[str, str]
    than_eager: str
    than_compile: str
    memory: str
    of_ceiling: str


def lines(result: Result, dtype: str) -> list[Line]:
    """The lines of the table of one dtype, in the order in which they were measured."""
    grouped: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in result["cases"]:
        if row["dtype"] == dtype:
            grouped.setdefault((row["case"], row["direction"]), {})[row["provider"]] = row
    return [_line(result, case, direction, rows) for (case, direction), rows in grouped.items()]


def _line(result: Result, case: str, direction: str, rows: dict[str, dict[str, Any]]) -> Line:
    batch, n, m, d, dv = next(iter(rows.values()))["shape"]
    ours, eager = rows.get(OURS), rows.get("eager")
    limit = seconds(result["ceiling"], batch * n * m * d, direction, result["threads"])
    return Line(
        case=case,
        shape="x".join(map(str, (batch, n, m, d))) + (f" dv {dv}" if dv != d else ""),
        direction=direction,
        times={name: show_ms(row["median_ms"]) for name, row in rows.items()},
        than_eager=_faster(eager, ours),
        than_compile=_faster(rows.get("compile"), ours),
        memory=" / ".join(show_mib(row["peak_mib"]) if row else NOTHING for row in (eager, ours)),
        of_ceiling=f"{1e5 * limit / ours['median_ms']:.0f}%" if limit and ours else NOTHING,
    )


def _faster(other: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    return show_ratio(other["median_ms"] / ours["median_ms"]) if other and ours else NOTHING


def dtypes(result: Result) -> list[str]:
    return list(dict.fromkeys(row["dtype"] for row in result["cases"]))


def provider_names(result: Result) -> list[str]:
    return list(dict.fromkeys(row["provider"] for row in result["cases"]))


def _cells(line: Line, names: list[str]) -> list[str]:
    times = [line.times.get(name, NOTHING) for name in names]
    ratios = [line.than_eager, line.than_compile]
    return [line.case, line.shape, line.direction, *times, *ratios, line.memory, line.of_ceiling]


def about(result: Result) -> str:
    """What was measured where, and what the columns mean."""
    rates = result["ceiling"]
    said = (
        f"{result['cpu']}, {result['threads']} threads, PyTorch {result['torch']}, "
        f"{result['date'][:10]}, commit {result['commit'] or 'unknown'}. Medians of interleaved "
        "runs; memory is the peak above the inputs; `both` is forward and backward with the "
        "gradients of query, key, value and weight."
    )
    if rates:
        said += (
            f" The ceiling is that of `benchmarks/ceiling.cpp` on every thread; one core does "
            f"{rates['scores_g']:.1f} G elements/s forward, {rates['gradients_g']:.1f} in the "
            "backward's sweep."
        )
    return said


def rich_table(result: Result) -> list[Table]:
    """A table a dtype, for a terminal."""
    names = provider_names(result)
    tables = []
    for dtype in dtypes(result):
        table = Table(title=dtype, box=SIMPLE_HEAD, show_edge=False)
        table.padding = (0, 0, 0, 1)
        for place, heading in enumerate(["case", "shape", "pass", *names]):
            ours = "bold" if heading == OURS else None
            table.add_column(heading, justify="left" if place < 3 else "right", style=ours)
        for heading in ("x eager", "x compile", "eager / native", "ceiling"):
            table.add_column(heading, justify="right", style="green" if "x" in heading else None)
        for line in lines(result, dtype):
            table.add_row(*_cells(line, names))
        tables.append(table)
    return tables


def markdown(result: Result) -> str:
    """A table a dtype, for the README, with what stands above it."""
    names = provider_names(result)
    headings = [f"**{name}**" if name == OURS else name for name in names]
    parts = [about(result)]
    for dtype in dtypes(result):
        columns = ["case", "B x n x m x d", "pass", *headings, "times eager", "times compile"]
        columns += ["memory, eager / native", "of ceiling"]
        rule = ["---"] * 3 + ["---:"] * (len(columns) - 3)
        body = [_cells(line, names) for line in lines(result, dtype)]
        table = "\n".join("| " + " | ".join(row) + " |" for row in [columns, rule, *body])
        parts.append(f"{dtype}:\n\n{table}")
    return "\n\n".join(parts)


def newest(folder: Path) -> Result:
    """The result with the latest date; ValueError where there is none."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    if not results:
        raise ValueError(f"{folder} has no results: python -m benchmarks.run makes one")
    return max(results, key=lambda result: result["date"])


def insert(text: str, table: str) -> str:
    """`text` with `table` between its markers; ValueError where they are not there once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the README needs the lines {BEGIN} and {END}, once, in that order")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status, 1 where --check finds the README out of date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    try:
        old = options.readme.read_text(encoding="utf-8")
        new = insert(old, markdown(newest(options.results)))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if old == new:
        return 0
    if options.check:
        print(f"{options.readme} is out of date: python -m benchmarks.table", file=sys.stderr)
        return 1
    options.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
