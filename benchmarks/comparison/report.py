"""Say by how much head is slower or faster than base, beyond the spread of the measurements."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from statistics import median
from typing import Any, NamedTuple

from attnkernels.profile.tables import Table
from benchmarks.comparison.interleave import Bursts, Measured

LIMIT = 1.03  # a smaller factor is not reported
COVERAGE = 0.95
RESAMPLES = 1000
STYLES = {"slower": "red", "faster": "green", "fails": "red"}


class Compared(NamedTuple):
    """Head against base: the medians of both, and the median of the turns' ratios head / base.

    The ratio has an interval, `low` to `high`. Both times of a turn were taken at one moment, so
    on a busy machine their ratio is steadier than that of the medians.
    """

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
    """Compare all turns, with a bootstrap interval of their median ratio.

    Pairs of processes are drawn first, then turns within each: what differs between processes, or
    from moment to moment, widens the interval.
    """
    generator = random.Random(0)
    ratios = [[h / b for b, h in zip(*pair, strict=True)] for pair in pairs]
    resampled = []
    for _ in range(RESAMPLES):
        drawn: list[float] = []
        for turns in generator.choices(ratios, k=len(ratios)):
            drawn += generator.choices(turns, k=len(turns))
        resampled.append(median(drawn))
    resampled.sort()
    tail = int(RESAMPLES * (1 - COVERAGE) / 2)
    return Compared(
        base_ms=1e3 * median(chain.from_iterable(pair.base for pair in pairs)),
        head_ms=1e3 * median(chain.from_iterable(pair.head for pair in pairs)),
        ratio=median(chain.from_iterable(ratios)),
        low=resampled[tail],
        high=resampled[-1 - tail],
    )


def is_slower(pairs: Sequence[Bursts]) -> bool:
    """Return True if head was measured, and slower."""
    return bool(pairs) and compare(pairs).verdict == "slower"


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
    drawn = Table()
    drawn.add_column("case")
    for heading in ("base", "head", "ratio", f"{COVERAGE:.0%} interval"):
        drawn.add_column(heading, justify="right")
    drawn.add_column("verdict")
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
