"""Compare our two backends on a GPU, and say which one each kind of call should take."""

from __future__ import annotations

from math import exp, log
from statistics import mean

from attnkernels.backends import ON_GPU
from attnkernels.ops.codes import STEP_QUERIES
from attnkernels.profile.tables import Table
from attnkernels.profile.units import show_ms, show_ratio
from benchmarks.suite import rates
from benchmarks.suite.providers import LATENCY
from benchmarks.suite.rates import NOTHING, Result, Row
from benchmarks.suite.table import OURS

Pair = dict[str, Row]  # rows of one measurement, by backend

ABOUT = (
    "`latency` is a forward on an idle device, including the wait for it. `launch` is the time of "
    "one empty kernel: for `latency` including the wait, otherwise until the next one can begin."
)


def tables(result: Result) -> list[Table]:
    """Format one table per dtype: times, ratio, rates, and for a step its launch time."""
    measured = _pairs(result)
    made = []
    for dtype in dict.fromkeys(dtype for dtype, _, _ in measured):
        table = Table(title=f"{dtype}: {' / '.join(OURS)}", keys=2)
        headings = ["time", f"{OURS[1]} takes", *rates.columns(result), "launch", "x launch"]
        for place, heading in enumerate(["case", "pass", *headings]):
            table.add_column(heading, justify="left" if place < 2 else "right")
        for (of, case, direction), pair in measured.items():
            if of == dtype:
                table.add_row(case, direction, *_cells(result, pair))
        made.append(table)
    return made


def preferences(result: Result) -> str:
    """Report the time ratio for each kind of call, and the present choice of `select`."""
    lines = []
    for (direction, size), preference in ON_GPU.items():
        ratios = [
            ratio
            for (_, _, measured), pair in _pairs(result).items()
            if measured == ("both" if direction == "training" else "forward")
            and size == ("step" if _is_step(pair) else "tiles")
            and (ratio := _ratio(pair)) is not None
        ]
        if ratios:
            typical = exp(mean(map(log, ratios)))
            first, measured = preference.order[0].NAME, preference.measured
            lines.append(
                f"  {direction}, {size}: {OURS[1]} takes {show_ratio(typical)} the time of "
                f"{OURS[0]} (geometric mean of {len(ratios)}, from {show_ratio(min(ratios))} to "
                f"{show_ratio(max(ratios))}); {first} is asked first ({measured})"
            )
    return "\n".join(["attnkernels.backends.ON_GPU", *lines]) if lines else ""


def launch_us(result: Result, direction: str) -> float | None:
    """Return the time of one empty kernel: until its end is known, or until the next can begin.

    Use the time from `gpu.cu`, or else that of PyTorch's smallest kernel.
    """
    known, name = result["ceiling"], "wait_us" if direction == LATENCY else "launch_us"
    return known.get(name) or known.get(f"torch_{name}")


def _pairs(result: Result) -> dict[tuple[str, str, str], Pair]:
    """Group the rows by dtype, case and direction; a CPU has none, since Triton needs a GPU."""
    found: dict[tuple[str, str, str], Pair] = {}
    for row in result["cases"] if result["device"] != "cpu" else []:
        if row["provider"] in OURS:
            key = row["dtype"], row["case"], row["direction"]
            found.setdefault(key, {})[row["provider"]] = row
    return found


def _cells(result: Result, pair: Pair) -> list[str]:
    rows = [pair.get(name) for name in OURS]
    times = [show_ms(row["median_ms"]) if row else NOTHING for row in rows]
    ratio, of_each = _ratio(pair), [rates.rates(result, row) for row in rows]
    shares = [[each[heading] for each in of_each] for heading in rates.columns(result)]
    direction = next(iter(pair.values()))["direction"]
    floor = launch_us(result, direction) if _is_step(pair) and direction != "both" else None
    above = [NOTHING, NOTHING]
    if floor:
        above = [show_ratio(1e3 * row["median_ms"] / floor) if row else NOTHING for row in rows]
    return [
        _both(times),
        show_ratio(ratio) if ratio else NOTHING,
        *map(_both, shares),
        show_ms(floor / 1e3) if floor else NOTHING,
        _both(above),
    ]


def _both(cells: list[str]) -> str:
    return NOTHING if set(cells) == {NOTHING} else " / ".join(cells)


def _ratio(pair: Pair) -> float | None:
    """Return Triton's time over the native backend's."""
    if len(pair) < len(OURS):
        return None
    native, triton = (pair[name]["median_ms"] for name in OURS)
    return triton / native


def _is_step(pair: Pair) -> bool:
    return next(iter(pair.values()))["shape"][1] <= STEP_QUERIES
