"""Say by how much head is slower or faster than base, beyond the spread of the measurements."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.comparison.interleave import Bursts, Measured

LIMIT = 1.03  # a smaller factor is not reported
COVERAGE = 0.95
RESAMPLES = 1000
STYLES = {"slower": "red", "faster": "green", "fails": "red"}


class Compared(NamedTuple):
    """Head against base. `ratio` is head's time by base's, `low` to `high` its interval."""

    base_ms: float
    head_ms: float
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return "slower" or "faster" if the whole interval is beyond LIMIT, "same" if none is."""
        if self.low > LIMIT:
            return "slower"
        if self.high < 1 / LIMIT:
            return "faster"
        return "same" if 1 / LIMIT <= self.low and self.high <= LIMIT else "unclear"


def compare(pairs: Sequence[Bursts]) -> Compared:
    """Compare the medians of all bursts, with a bootstrap interval of their ratio.

    Pairs of processes are drawn first, then bursts within each, those of both sides that ran next
    to each other together: what differs between processes, or from moment to moment, widens the
    interval.
    """
    generator = random.Random(0)
    everything = [burst for pair in pairs for burst in zip(*pair, strict=True)]
    base, head = _medians(everything)
    ratios = []
    for _ in range(RESAMPLES):
        drawn: list[tuple[float, ...]] = []
        for pair in generator.choices(pairs, k=len(pairs)):
            bursts = list(zip(*pair, strict=True))
            drawn += generator.choices(bursts, k=len(bursts))
        b, h = _medians(drawn)
        ratios.append(h / b)
    ratios.sort()
    tail = int(RESAMPLES * (1 - COVERAGE) / 2)
    return Compared(1e3 * base, 1e3 * head, head / base, ratios[tail], ratios[-1 - tail])


def _medians(bursts: Sequence[tuple[float, ...]]) -> tuple[float, float]:
    base, head = zip(*bursts, strict=True)
    return median(base), median(head)


def rows(measured: Measured) -> list[dict[str, Any]]:
    """Return one row per job, as the JSON holds it; a job that head alone cannot run "fails"."""
    made = []
    for job, pairs in measured.bursts.items():
        row: dict[str, Any] = job._asdict()
        if job in measured.unsupported:
            errors = measured.unsupported[job]
            lost = "head" in errors and "base" not in errors
            row |= {"verdict": "fails" if lost else "not compared", "errors": errors}
        else:
            compared = compare(pairs)
            row |= {**compared._asdict(), "verdict": compared.verdict}
            row["bursts"] = [pair._asdict() for pair in pairs]
        made.append(row)
    return made


def table(measured: Measured, rows: list[dict[str, Any]]) -> Table:
    """Draw the rows for a terminal."""
    drawn = Table(box=SIMPLE_HEAD, show_edge=False)
    drawn.add_column("case")
    for heading in ("base", "head", "ratio", f"{COVERAGE:.0%} interval"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_column("verdict", no_wrap=True)
    for job, row in zip(measured.bursts, rows, strict=True):
        verdict = row["verdict"]
        cells = [""] * 4
        if "ratio" in row:
            cells = [_time(row["base_ms"]), _time(row["head_ms"]), f"{row['ratio']:.3f}"]
            cells.append(f"{row['low']:.3f} to {row['high']:.3f}")
        drawn.add_row(job.label, *cells, verdict, style=STYLES.get(verdict))
    return drawn


def _time(ms: float) -> str:
    return f"{1e3 * ms:.2f} us" if ms < 1 else f"{ms:.2f} ms"
