"""Write the results of an example: a table, figures, and the numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from attnkernels.extras import needs
from attnkernels.info import versions
from attnkernels.measure import files
from benchmarks.suite.commit import commit

with needs("examples"):
    from matplotlib.figure import Figure
    from rich.text import Text

    from attnkernels.profile import tables


def write(
    out: Path,
    *,
    options: Mapping[str, Any],
    columns: Sequence[str],
    keys: int = 1,
    rows: Sequence[Sequence[str]],
    figures: Mapping[str, Figure],
    record: Mapping[str, Any],
) -> None:
    """Write ``table.md``, the figures as PNG, and ``results.json`` into `out`; print the table.

    Args:
        out: the folder, created if missing.
        options: the arguments of the command.
        columns, rows: columns and rows of the table.
        keys: the number of columns that name a row.
        figures: maps file names without suffix to figures.
        record: the values of the table as numbers, and other facts of the run.
    """
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    body = "".join(f"| {' | '.join(row)} |\n" for row in escaped)
    files.write(out / "table.md", head + body)
    for name, figure in figures.items():
        files.write_figure(out / f"{name}.png", figure, dpi=150, bbox_inches="tight")
    everything = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "options": {name: str(value) for name, value in options.items()},
        **record,
    }
    files.write(out / "results.json", json.dumps(everything, indent=2) + "\n")
    tables.console().print(table(columns, rows, keys))
    print(f"Table, pictures and figures are in {out.resolve()}")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], keys: int) -> tables.Table:
    """Return the table for a terminal."""
    made = tables.Table(*columns, keys=keys)
    for row in rows:
        made.add_row(*map(Text, row))
    return made
