"""Measure what the parts of precision="fast" cost in accuracy: docs/math.md, section 13.

    python -m tools.sine_errors

It prints five tables, all by simulation in float64:

1. the series of attnkernels/ops/series.py, with the largest errors of tanh and of its derivative;
2. scores with sines rounded to few bits, beside scores of rounded inputs;
3. sines beside the singular functions of the kernel, the best terms of the same rank;
4. a fit with the line of (E14), and fits without it;
5. the recurrence by which the kernels make sines.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog, minimize_scalar

from attnkernels.ops.series import SERIES, Series
from tools.sines import SCAN, SLOPE, errors, fit

Array = Any  # of numpy

ROWS, CHUNK, TILES = 128, 64, 2  # of queries and of keys; hidden units that share a series; drawn
DEPTHS = (64, 256, 1024)
MORE = 6  # sines of a longer series, beyond its reach
LINE_POINTS = 120  # of a fit by sines alone
NODES = 300  # of an integral
COMPARED = tuple(each for each in SERIES if each.reach in (4, 8, 12, 20))  # with other terms
ORDERS = (1, 4, 8, 14, 22)  # of sines by the recurrence
CUT = 4  # standard deviations to the ends of a normal distribution
SUM = r"$\sum \lvert c_p \rvert$"
BEGINNING = 2.0**-20  # error of a sine of the GPU


def margin(each: Series) -> tuple[float, float]:
    """Return what the largest errors, of tanh and its derivative, may exceed those of a scan by.

    Where an error is largest it is flat, or an end of the scan. At the nearest point, at most
    half a distance h off, it is less by at most (h / 2)^2 / 2 times its largest second derivative.
    Those of tanh and of its derivative are at most 0.77 and 2.
    """
    c, w = np.abs(each.sines), each.step * np.arange(1, len(each.sines) + 1)
    eighth = (each.reach / (SCAN - 1)) ** 2 / 8
    return eighth * (c @ w**2 + 0.77), eighth * (c @ w**3 + 2)


def series_rows() -> list[tuple[float, ...]]:
    """Return (N, reach, error of tanh, of the derivative, sum |c_p|) of every series."""
    return [(len(s.sines), s.reach, *errors(s), np.abs(s.sines).sum()) for s in SERIES]


def to_bits(bits: int) -> Callable[[Array], Array]:
    """Return a function that rounds to so many significant bits, of any exponent."""

    def rounded(x: Array) -> Array:
        shifted = x * (2.0 ** (53 - bits) + 1)  # as Veltkamp splits numbers
        return shifted - (shifted - x)

    return rounded


def to_float16(x: Array) -> Array:
    """Round to float16, with its smallest numbers."""
    return x.astype(np.float16).astype(np.float64)


def unrounded(x: Array) -> Array:
    """Return x."""
    return x


class Way(NamedTuple):
    """A way to compute scores by sines: how they are rounded, and more of them than usual.

    split: each is the sum of two numbers of that format, and a product is three products.
    """

    rounded: Callable[[Array], Array] = unrounded
    split: bool = False
    more: int = 0

    def product(self, left: Array, right: Array) -> Array:
        """Return left right^T by products of rounded numbers."""
        a, b = self.rounded(left), self.rounded(right)
        product = a @ b.T
        if self.split:
            product += self.rounded(left - a) @ b.T + a @ self.rounded(right - b).T
        return product


WAYS = {
    "not rounded": Way(),
    "TF32": Way(to_bits(11)),
    "float16": Way(to_float16),
    "bfloat16": Way(to_bits(8)),
    "float16, split": Way(to_float16, split=True),
    "bfloat16, split": Way(to_bits(8), split=True),
    "float16, $N$ + 4": Way(to_float16, more=MORE),
    "float16, split, $N$ + 4": Way(to_float16, split=True, more=MORE),
}
INPUTS = {"inputs in float16": to_float16, "inputs in bfloat16": to_bits(8)}


@cache
def longer(reach: float, more: int) -> Series:
    """Return a series of reach + more sines."""
    return fit(reach, int(reach) + more)


def features(a: Array, b: Array, w: Array, series: Series) -> tuple[Array, Array]:
    """Return (n, 2 N d) and (m, 2 N d), whose product has the sines of (E15), by their weights."""
    at = series.step * np.arange(1, len(series.sines) + 1)
    at_a, at_b = a[..., None] * at, b[..., None] * at
    weighted = w[:, None] * np.array(series.sines)
    left = np.concatenate((np.sin(at_a) * weighted, np.cos(at_a) * weighted), -1)
    right = np.concatenate((np.cos(at_b), np.sin(at_b)), -1)
    return left.reshape(len(a), -1), right.reshape(len(b), -1)


def by_sines(q: Array, k: Array, w: Array, ways: Iterable[Way]) -> list[Array]:
    """Return the scores of a tile in each way, with a series for every CHUNK of hidden units."""
    ways, largest = list(ways), np.abs(w).max()
    scores = [np.zeros((len(q), len(k))) for _ in ways]
    for t in range(0, len(w), CHUNK):
        a, b, u = q[:, t : t + CHUNK], k[:, t : t + CHUNK], w[t : t + CHUNK]
        reach = max(a.max() + b.max(), -a.min() - b.min())
        shortest = next(each for each in SERIES if reach <= each.reach)
        for more in {way.more for way in ways}:
            series = longer(shortest.reach, more) if more else shortest
            left, right = features(a, b, u / largest, series)
            line = series.linear * ((a @ u)[:, None] + b @ u)
            for way, sums in zip(ways, scores, strict=True):
                if way.more == more:
                    sums += largest * way.product(left, right) + line
    return scores


def exact(q: Array, k: Array, w: Array) -> Array:
    """Return the scores of (E1)."""
    return np.stack([np.tanh(row + k) @ w for row in q])


def score_errors(d: int, ways: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Return rms and maximum of the errors of scores by name, and first those of the scores.

    q and k are normal with variance 1, and w with variance 1 / d. Without `ways` there are all.
    """
    ways = tuple(WAYS) if ways is None else ways
    random = np.random.default_rng(d)
    found: dict[str, list[Array]] = {}
    for _ in range(TILES):
        q, k = random.standard_normal((2, ROWS, d))
        w = random.standard_normal(d) / np.sqrt(d)
        right = exact(q, k, w)
        found.setdefault("the scores", []).append(right)
        for name, scores in zip(
            ways, by_sines(q, k, w, [WAYS[name] for name in ways]), strict=True
        ):
            found.setdefault(name, []).append(scores - right)
        for name, rounded in INPUTS.items():
            error = exact(*map(rounded, (q, k, w))) - right
            found.setdefault(name, []).append(error)
    return {name: _sizes(np.concatenate(each)) for name, each in found.items()}


def _sizes(x: Array) -> tuple[float, float]:
    return np.sqrt((x**2).mean()), np.abs(x).max()


class Terms(NamedTuple):
    """Errors of sines and of as many singular functions, on |a|, |b| <= reach / 2.

    rank: how many singular functions have the largest error of the sines.
    """

    sines: tuple[float, float]
    singular: tuple[float, float]
    rank: int


def terms(series: Series, normal: bool) -> Terms:
    """Compare 2 N terms for tanh(a + b), where a and b are uniform or normal.

    The singular functions are those of the kernel without what depends on a or b alone, which needs
    no products. Of all sums of so many products g(a) h(b) they have the least root of the mean
    squared error. A normal distribution ends at CUT standard deviations.
    """
    x, w = np.polynomial.legendre.leggauss(NODES)
    x = x * series.reach / 2
    if normal:
        w = w * np.exp(-((2 * CUT * x / series.reach) ** 2) / 2)
    w = w / w.sum()
    y = x[:, None] + x
    kernel = np.tanh(y)
    kernel = kernel - (kernel @ w)[:, None] - w @ kernel + w @ kernel @ w
    left, values, right = np.linalg.svd(np.sqrt(w)[:, None] * kernel * np.sqrt(w))
    left, right = left / np.sqrt(w)[:, None] * values, right / np.sqrt(w)

    def largest(rank: int) -> float:
        return np.abs(kernel - left[:, :rank] @ right[:rank]).max()

    c, at = np.array(series.sines), series.step * np.arange(1, len(series.sines) + 1)
    error = series.linear * y + np.sin(y[..., None] * at) @ c - np.tanh(y)
    most, rank = np.abs(error).max(), 2 * len(c)
    return Terms(
        (np.sqrt(w @ error**2 @ w), most),
        (np.sqrt((values[rank:] ** 2).sum()), largest(rank)),
        next(each for each in range(NODES) if largest(each) <= most),
    )


def without_line(reach: float, orders: Sequence[int]) -> tuple[float, float, float]:
    """Return the errors of tanh and its derivative and sum |c_p|, of the best fit by sines alone.

    It minimises what tools/sines.py does, for the best step.

    Args:
        reach: the fit is over |y| <= reach.
        orders: the multiples p of the step.
    """

    def functions(y: Array, step: float) -> tuple[Array, Array]:
        at = step * np.asarray(orders)
        return np.sin(np.outer(y, at)), np.cos(np.outer(y, at)) * at

    y = reach * np.sin(np.linspace(0, np.pi / 2, LINE_POINTS))
    wanted = np.concatenate([np.tanh(y), 1 / np.cosh(y) ** 2 / SLOPE])

    def solve(ratio: float) -> tuple[Array, float]:
        values, slopes = functions(y, np.pi / (ratio * reach))
        rows = np.vstack([values, slopes / SLOPE])
        error = np.ones((len(rows), 1))
        found = linprog(
            [*np.zeros(len(orders)), 1],
            A_ub=np.block([[rows, -error], [-rows, -error]]),
            b_ub=np.concatenate([wanted, -wanted]),
            bounds=[(None, None)] * len(orders) + [(0, None)],
            method="highs",
        )
        return found.x[:-1], found.fun

    near = min(np.arange(1.05, 2.15, 0.1), key=lambda ratio: solve(ratio)[1])
    bounds = near - 0.1, near + 0.1
    ratio = minimize_scalar(
        lambda ratio: solve(ratio)[1], bounds=bounds, method="bounded", options={"xatol": 0.005}
    ).x
    c = solve(ratio)[0]
    y = np.linspace(0, reach, 20_001)
    values, slopes = functions(y, np.pi / (ratio * reach))
    value, slope = np.abs(values @ c - np.tanh(y)), np.abs(slopes @ c - 1 / np.cosh(y) ** 2)
    return value.max(), slope.max(), np.abs(c).sum()


def line_rows(series: Series) -> dict[str, tuple[float, float, float]]:
    """Return (error of tanh, of the derivative, sum |c_p|) with the line and without it."""
    count = len(series.sines)
    return {
        "a line, $p = 1, 2, 3$ ...": (*errors(series), np.abs(series.sines).sum()),
        "no line, $p = 1, 2, 3$ ...": without_line(series.reach, range(1, count + 1)),
        "no line, $p = 1, 3, 5$ ...": without_line(series.reach, range(1, 2 * count, 2)),
    }


def recurrence_errors(count: int, beginning: float) -> Array:
    """Return the largest errors of sin(p x) and cos(p x), p = 1, ..., count, in float32.

    `beginning` is the error of sin(x) and of cos(x), of either sign; |x| <= pi.
    """
    random = np.random.default_rng(0)
    x = np.linspace(-np.pi, np.pi, 100_001)
    found = np.zeros(count)
    sine, cosine = (
        (f(x) + beginning * random.choice([-1, 1], x.shape)).astype(np.float32)
        for f in (np.sin, np.cos)
    )
    for function, now in ((np.sin, sine), (np.cos, cosine)):
        before = np.full_like(now, function(0.0))
        for p in range(1, count + 1):
            error = np.abs(now.astype(np.float64) - function(p * x)).max()
            found[p - 1] = max(found[p - 1], error)
            before, now = now, 2 * cosine * now - before
    return found


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as docs/math.md has them; numbers that are not whole get two digits."""
    print(f"| {' | '.join(headings)} |")
    print("|---|" + "---:|" * (len(headings) - 1))
    for row in rows:
        print(f"| {' | '.join(map(cell, row))} |", flush=True)
    print()


def cell(x: object) -> str:
    """Return a number in two digits, whole or of size 1, or with an exponent."""
    if not isinstance(x, float) or x == int(x):
        return f"{x:g}" if isinstance(x, float) else str(x)
    return f"{x:.2f}" if x >= 0.1 else f"{x:.1e}".replace("e-0", "e-")


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.sine_errors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    table(
        ("$N$", "reach", "error of tanh", "of its derivative", SUM),
        ((str(row[0]), *row[1:]) for row in series_rows()),
    )
    most = np.array([margin(each) for each in SERIES]).max()
    print(f"Between the points of the scan, errors are larger by {most:.0e} at most.\n")
    each = {d: score_errors(d) for d in DEPTHS}
    table(
        ("sines", *(f"{kind}, $d$ = {d}" for d in DEPTHS for kind in ("rms", "max"))),
        ([name, *(x for d in DEPTHS for x in each[d][name])] for name in each[DEPTHS[0]]),
    )
    table(
        ("reach", "distribution", "terms", "sines, rms", "max", "singular functions, rms", "max")
        + ("terms for the max of sines",),
        (
            (f"{s.reach:g}", kind, 2 * len(s.sines), *found.sines, *found.singular, found.rank)
            for s in COMPARED
            for kind in ("uniform", "normal")
            for found in [terms(s, kind == "normal")]
        ),
    )
    table(
        ("reach", "$N$", "terms", "error of tanh", "of its derivative", SUM),
        (
            (f"{s.reach:g}", len(s.sines), name, *row)
            for s in COMPARED
            for name, row in line_rows(s).items()
        ),
    )
    last = np.abs(SERIES[-1].sines)
    plain, off = (recurrence_errors(len(last), x) for x in (0.0, BEGINNING))
    rows = [(f"$p$ = {p}", plain[p - 1], off[p - 1]) for p in ORDERS]
    rows.append((r"$\sum_p \lvert c_p \rvert$ times it", last @ plain, last @ off))
    table(("error of a sine or cosine", "exact at first", "$2^{-20}$ off at first"), rows)


if __name__ == "__main__":
    main()
