"""The report on compiled kernels: a table per target, and the assertions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console

from attnkernels.profile.tables import Table
from tools.sass.loops import Inner


class Check(NamedTuple):
    """An assertion about the kernels for a target, and its failures."""

    target: str
    sentence: str
    failures: list[str]


def table(
    title: str,
    texts: Sequence[str],
    numbers: Sequence[str],
    rows: Iterable[tuple[Sequence[object], dict[str, int], list[Inner]]],
) -> Table:
    """Return a table with one line per kernel, or per inner loop if it has several.

    A row has its cells under `texts` and `numbers`, its spills and its loops.
    """
    table = Table(title=title, keys=len(texts))
    for heading in texts:
        table.add_column(heading)
    for heading in (*numbers, "spills"):
        table.add_column(heading, justify="right")
    table.add_column("loop")
    for heading in ("issued", "MUFU", "SHFL", "elements/clk"):
        table.add_column(heading, justify="right")
    for cells, spills, loops in rows:
        head = [*map(str, cells), spilled(spills) or "none"]
        for loop in loops or [None]:
            table.add_row(*head, *(_cells(loop) if loop else ()))
            head = [""] * len(head)
    return table


def _cells(loop: Inner) -> tuple[str, ...]:
    figures = (f"{figure:.2f}" for figure in (loop.issued, loop.mufu))
    return loop.variant, *figures, str(loop.shuffles), f"{loop.elements_a_clock:.1f}"


def spilled(spills: dict[str, int]) -> str:
    """Return the spills in words."""
    return ", ".join(f"{name} {amount}" for name, amount in spills.items())


def print_checks(console: Console, made: list[Check]) -> None:
    """Print one line per assertion, with its failures below."""
    for check in made:
        console.print(f"{'FAILED' if check.failures else 'ok':6} {check.target}: {check.sentence}")
        for failure in check.failures:
            console.print(f"         {failure}")
