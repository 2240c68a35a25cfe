"""Fit the sines of precision="fast", (E14), and measure what they are worth.

    python -m tools.sines            print the table of attnkernels/ops/series.py with its errors;
                                     fail if that of csrc/common/series.h is another
    python -m tools.sines --write    fit anew, and write both files

A fit minimises the larger of the errors of tanh and, divided by `SLOPE`, of its derivative, over
|y| <= reach: a linear programme for a given step h, whose best value a search finds.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linprog, minimize_scalar

from attnkernels.ops import series
from attnkernels.ops.series import SERIES, Series

REACHES = range(2, 21, 2)
SLOPE = 5.0  # how much larger the error of the derivative may be
POINTS = 600  # of a fit
SCAN = 200_001  # of a measurement: errors between neighbours differ by less than a thousandth
STEPS = np.arange(0.5, 1.5, 0.05)  # pi / (h reach) to search through
FILE = Path(series.__file__)
HEADER = FILE.parents[2] / "csrc" / "common" / "series.h"
WIDTH = 100  # of a line of C++
TAIL = """// clang-format on

}  // namespace attnkernels
"""


def terms(reach: float) -> int:
    """Return the number of sines for a reach: with two more than it, all errors are alike."""
    return int(reach) + 2


def _functions(y: Any, step: float, count: int) -> tuple[Any, Any]:
    """Return the values and the derivatives of the line and the sines, (points, 1 + count)."""
    w = step * np.arange(1, count + 1)
    values = np.column_stack([y, np.sin(np.outer(y, w))])
    return values, np.column_stack([np.ones_like(y), np.cos(np.outer(y, w)) * w])


def solve(reach: float, step: float, count: int) -> tuple[Any, float]:
    """Return the coefficients of the line and the sines, and the error that they minimise."""
    y = reach * np.sin(np.linspace(0, np.pi / 2, POINTS))  # denser at the end, as in Chebyshev's
    values, slopes = _functions(y, step, count)
    rows = np.vstack([values, slopes / SLOPE])
    wanted = np.concatenate([np.tanh(y), 1 / np.cosh(y) ** 2 / SLOPE])
    error = np.ones((len(rows), 1))
    found = linprog(
        [*np.zeros(count + 1), 1],
        A_ub=np.block([[rows, -error], [-rows, -error]]),
        b_ub=np.concatenate([wanted, -wanted]),
        bounds=[(None, None)] * (count + 1) + [(0, None)],
        method="highs",
    )
    return found.x[:-1], found.fun


def fit(reach: float, count: int) -> Series:
    """Return the best series of `count` sines for |y| <= reach."""

    def error(ratio: float) -> float:
        return solve(reach, np.pi / (ratio * reach), count)[1]

    near = min(STEPS, key=error)
    bounds = near - 0.05, near + 0.05
    ratio = minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x
    step = float(f"{np.pi / (ratio * reach):.6g}")
    line, *sines = (float(f"{c:.8g}") for c in solve(reach, step, count)[0])
    return Series(float(reach), step, line, tuple(sines))


def errors(each: Series) -> tuple[float, float]:
    """Return the largest errors of tanh and of its derivative, by a scan in float64."""
    y = np.linspace(0, each.reach, SCAN)
    values, slopes = _functions(y, each.step, len(each.sines))
    c = np.array([each.linear, *each.sines])
    return abs(values @ c - np.tanh(y)).max(), abs(slopes @ c - 1 / np.cosh(y) ** 2).max()


def written(table: list[Series]) -> str:
    """Return the text of attnkernels/ops/series.py with another table."""
    head = FILE.read_text().split("SERIES = (")[0]
    lines = []
    for each in table:
        sines = "".join(f"            {c!r},\n" for c in each.sines)
        numbers = f"{each.reach!r},\n        {each.step!r},\n        {each.linear!r}"
        lines.append(f"    Series(\n        {numbers},\n        (\n{sines}        ),\n    ),\n")
    return f"{head}SERIES = (\n{''.join(lines)})\n"


def header(table: list[Series]) -> str:
    """Return the text of csrc/common/series.h with another table."""
    head = HEADER.read_text().split("constexpr Series kSeries[] = {")[0]
    rows = []
    for each in table:
        numbers = [f"{x!r}f" for x in each[:-1]]
        sines = ", ".join(f"{c!r}f" for c in each.sines)
        row = f"    {{{', '.join(numbers)}, {{{sines}}}}},"
        if len(row) > WIDTH:
            sines = textwrap.fill(
                f"{{{sines}}}}},", WIDTH, subsequent_indent=" " * 6, initial_indent=" " * 5
            )
            row = "    {" + ",\n     ".join(numbers) + f",\n{sines}"
        rows.append(f"{row}\n")
    return f"{head}constexpr Series kSeries[] = {{\n{''.join(rows)}}};\n{TAIL}"


def main() -> int:
    """Print the table, or fit and write it. Return 1 if the two files differ."""
    parser = argparse.ArgumentParser(description="Fit the sines of precision='fast'.")
    parser.add_argument("--write", action="store_true", help="fit anew, and write the table")
    table = list(SERIES)
    if parser.parse_args().write:
        table = [fit(reach, terms(reach)) for reach in REACHES]
        FILE.write_text(written(table))
        HEADER.write_text(header(table))
    print(f"{'reach':>5} {'sines':>5} {'tanh':>8} {'derivative':>10}")
    for each in table:
        value, slope = errors(each)
        print(f"{each.reach:5g} {len(each.sines):5} {value:8.1e} {slope:10.1e}")
    if HEADER.read_text() == header(table):
        return 0
    print(f"{HEADER} has another table: --write makes both anew")
    return 1


if __name__ == "__main__":
    sys.exit(main())
