"""Tables that lose nothing where they are printed: what a terminal cannot hold goes below."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column

PIPE = 130  # columns where the output is no terminal
UNLIMITED = 10_000
LEAST = 12  # columns in which a cell can be broken between words


class Table(rich.table.Table):
    """A table whose columns are printed in several parts if they do not fit side by side.

    Headings are broken between words first. Each part repeats the first columns, which name the
    rows, and a cell that is wider than the terminal goes on in the next line.

    Args:
        headings, options: as in `rich.table.Table`.
        keys: the number of columns that name a row.
    """

    def __init__(self, *headings: str, keys: int = 1, **options: Any) -> None:
        look: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "padding": (0, 0, 0, 1)}
        self._options = look | options
        super().__init__(*headings, **self._options)
        self.keys = keys

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = list(self._parts(console, options))
        parts[0].title, parts[-1].caption = self.title, self.caption
        for place, part in enumerate(parts):
            if place:
                yield ""
            yield part

    def _parts(self, console: Console, options: ConsoleOptions) -> Iterator[rich.table.Table]:
        """Yield tables of as many columns as fit, but of one beside the first columns at least."""
        whole = options.update(width=UNLIMITED)

        def fits(columns: list[Column], beside: int = 0) -> bool:
            wide = Measurement.get(console, whole, self._of(columns)).maximum
            return wide + beside <= options.max_width

        columns = self.columns
        if not fits(columns):
            columns = [_narrower(console, whole, column) for column in columns]
        first, rest = columns[: self.keys], columns[self.keys :]
        if fits(first, LEAST):  # rather break the other column
            first = [replace(column, no_wrap=True) for column in first]
        part: list[Column] = []
        for column in rest:
            if part and not fits([*first, *part, column]):
                yield self._of([*first, *part])
                part = []
            part.append(column)
        yield self._of([*first, *part])

    def _of(self, columns: list[Column]) -> rich.table.Table:
        """Return a table of these columns, without title and caption."""
        made = rich.table.Table(**self._options | {"title": None, "caption": None})
        for column in columns:
            made.add_column(
                column.header,
                header_style=column.header_style,
                style=column.style,
                justify=column.justify,
                no_wrap=column.no_wrap,
                overflow="fold",
            )
        for row, *cells in zip(self.rows, *(column.cells for column in columns), strict=True):
            made.add_row(*cells, style=row.style, end_section=row.end_section)
        return made


def _narrower(console: Console, whole: ConsoleOptions, column: Column) -> Column:
    """Return the column with its heading broken to the width of its cells."""
    header = column.header
    if not isinstance(header, str) or "\n" in header:
        return column
    widths = [Measurement.get(console, whole, cell).maximum for cell in column.cells]
    width = max([1, *widths, *map(len, header.split())])
    lines = textwrap.wrap(header, width, break_long_words=False, break_on_hyphens=False)
    return replace(column, header="\n".join(lines))


def console(**options: Any) -> Console:
    """Return a console as wide as the terminal, or of PIPE columns where there is none.

    The variable COLUMNS is heeded in both cases.
    """
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if known else PIPE, **options)
