"""Make the README's tables from the newest results of a CPU and of a GPU.

    python -m benchmarks.suite.table [--check] [--readme FILE] [--results FOLDER]

--check changes nothing and fails if the README does not match the newest results.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from attnkernels.measure.files import write
from attnkernels.profile.tables import Table
from attnkernels.profile.units import show_mib, show_ms, show_ratio
from benchmarks.suite import rates
from benchmarks.suite.cases import GRAPH
from benchmarks.suite.rates import NOTHING, Result, Row

ROOT = Path(__file__).resolve().parents[2]
MARKERS = {  # the markers around the tables of a CPU and of a GPU
    "cpu": ("<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"),
    "gpu": ("<!-- benchmarks-gpu:begin -->", "<!-- benchmarks-gpu:end -->"),
}
COMMANDS = {"cpu": "python -m benchmarks.suite", "gpu": "python -m benchmarks.gpu --out DIR"}
OURS = ("native", "triton")


class Line(NamedTuple):
    """A row of the table: one case and direction; factors, memory and rates are those of `ours`."""

    case: str
    shape: str
    direction: str
    times: dict[str, str]
    than_eager: str
    than_compile: str
    memory: str
    rates: dict[str, str]


def lines(result: Result, dtype: str) -> list[Line]:
    """Return the lines of the table of one dtype, in the order of measurement."""
    grouped: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in result["cases"]:
        if row["dtype"] == dtype:
            grouped.setdefault((row["case"], row["direction"]), {})[row["provider"]] = row
    return [_line(result, case, direction, rows) for (case, direction), rows in grouped.items()]


def _line(result: Result, case: str, direction: str, rows: dict[str, Row]) -> Line:
    first = next(iter(rows.values()))
    batch, n, m, d, dv = first["shape"]
    more = (f" dv {dv}" if dv != d else "") + (f" ±{first['window']}" if "window" in first else "")
    mine, eager = rows.get(ours(result)), rows.get("eager")
    return Line(
        case=case,
        shape="x".join(map(str, (batch, n, m, d))) + more,
        direction=direction,
        times={name: show_ms(row["median_ms"]) for name, row in rows.items()},
        than_eager=_faster(eager, mine),
        than_compile=_faster(rows.get("compile"), mine),
        memory=" / ".join(_peak(row) for row in (eager, mine)),
        rates=rates.rates(result, mine),
    )


def _faster(other: Row | None, mine: Row | None) -> str:
    return show_ratio(other["median_ms"] / mine["median_ms"]) if other and mine else NOTHING


def _peak(row: Row | None) -> str:
    """Return the memory of a row; a CUDA graph keeps its own between replays, which need none."""
    return show_mib(row["peak_mib"]) if row and row["direction"] != GRAPH else NOTHING


def ours(result: Result) -> str:
    """Return our backend, with which the others are compared."""
    names = provider_names(result)
    return next((name for name in OURS if name in names), OURS[0])


def dtypes(result: Result) -> list[str]:
    return list(dict.fromkeys(row["dtype"] for row in result["cases"]))


def provider_names(result: Result) -> list[str]:
    return list(dict.fromkeys(row["provider"] for row in result["cases"]))


def _cells(line: Line, names: list[str]) -> list[str]:
    times = [line.times.get(name, NOTHING) for name in names]
    ratios = [line.than_eager, line.than_compile]
    return [
        *(line.case, line.shape, line.direction),
        *times,
        *ratios,
        line.memory,
        *line.rates.values(),
    ]


def about(result: Result) -> str:
    """Describe the machine and the columns."""
    return (
        f"{rates.machine(result)}, PyTorch {result['torch']}, "
        f"{result['date'][:10]}, commit {result['commit'] or 'unknown'}. Medians of interleaved "
        "runs; memory is the peak above the inputs; `both` is forward and backward with the "
        f"gradients of query, key, value and weight. {rates.about(result)}"
    ).rstrip()


def rich_table(result: Result) -> list[Table]:
    """Make one table per dtype for a terminal."""
    names, mine = provider_names(result), ours(result)
    tables = []
    for dtype in dtypes(result):
        table = Table(title=dtype, keys=2)
        for place, heading in enumerate(["case", "pass", "shape", *names]):
            style = "bold" if heading == mine else None
            table.add_column(heading, justify="left" if place < 3 else "right", style=style)
        last = ["x eager", "x compile", f"eager / {mine}", *rates.columns(result)]
        for heading in last:
            style = "green" if heading.startswith("x ") else None
            table.add_column(heading, justify="right", style=style)
        for line in lines(result, dtype):
            case, shape, direction, *rest = _cells(line, names)
            table.add_row(case, direction, shape, *rest)
        tables.append(table)
    return tables


def markdown(result: Result) -> str:
    """Make one table per dtype for the README, with its introduction."""
    names, mine = provider_names(result), ours(result)
    headings = [f"**{name}**" if name == mine else name for name in names]
    parts = [about(result)]
    for dtype in dtypes(result):
        columns = ["case", "B x n x m x d", "pass", *headings, "times eager", "times compile"]
        columns += [f"memory, eager / {mine}", *rates.columns(result)]
        rule = ["---"] * 3 + ["---:"] * (len(columns) - 3)
        body = [_cells(line, names) for line in lines(result, dtype)]
        table = "\n".join("| " + " | ".join(row) + " |" for row in [columns, rule, *body])
        parts.append(f"{dtype}:\n\n{table}")
    return "\n\n".join(parts)


def newest(folder: Path, kind: str) -> Result | None:
    """Return the latest result of a kind, "cpu" or "gpu", or None."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    of_kind = [each for each in results if (each["device"] == "cpu") == (kind == "cpu")]
    return max(of_kind, key=lambda result: result["date"], default=None)


def insert(text: str, table: str, kind: str) -> str:
    """Put `table` between its markers in `text`; raise ValueError unless each occurs once."""
    begin, end = MARKERS[kind]
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the README needs the lines {begin} and {end}, once, in that order")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if --check finds the README out of date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.table")
    parser.add_argument("--check", action="store_true", help="only check that it is up to date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    try:
        old = new = options.readme.read_text(encoding="utf-8")
        for kind in MARKERS:
            result = newest(options.results, kind)
            missing = f"Not measured yet: `{COMMANDS[kind]}` measures it."
            new = insert(new, markdown(result) if result else missing, kind)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if old == new:
        return 0
    if options.check:
        print(f"{options.readme} is out of date: python -m benchmarks.suite.table", file=sys.stderr)
        return 1
    write(options.readme, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
