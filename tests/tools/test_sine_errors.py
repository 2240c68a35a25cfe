"""The tables of docs/math.md, section 13, are those that tools/sine_errors.py prints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from attnkernels.ops.series import SERIES, SLOPE_ERROR, VALUE_ERROR
from tools import sine_errors

PAGE = Path(__file__).resolve().parents[2] / "docs" / "math.md"
DIGITS = 0.06  # half a unit of the second digit, and a little for another BLAS
QUICK = tuple(name for name, way in sine_errors.WAYS.items() if not way.more)
EACH = pytest.mark.parametrize("series", sine_errors.COMPARED, ids=lambda s: f"{s.reach:g}")


def rows(*first: str) -> list[float]:
    """Return the numbers of the row of section 13 that begins with these cells."""
    section = PAGE.read_text(encoding="utf-8").split("\n## 13. ")[1]
    found = [
        [float(x) for x in cells[len(first) :]]
        for line in section.splitlines()
        if line.startswith("| ")
        and (cells := line.strip("| ").split(" | "))[: len(first)] == [*first]
    ]
    assert len(found) == 1, f"{first} begins {len(found)} rows"
    return found[0]


def close(documented: list[float], measured: Iterable[float]) -> bool:
    return documented == pytest.approx([float(x) for x in measured], rel=DIGITS)


def test_series() -> None:
    for count, reach, *numbers in sine_errors.series_rows():
        assert close(rows(str(count), f"{reach:g}"), numbers)
    for series in SERIES:
        value, slope = np.add(sine_errors.errors(series), sine_errors.margin(series))
        assert value <= VALUE_ERROR and slope <= SLOPE_ERROR


def test_scores() -> None:
    for place, d in enumerate(sine_errors.DEPTHS[:2]):
        for name, numbers in sine_errors.score_errors(d, QUICK).items():
            assert close(rows(name)[2 * place : 2 * place + 2], numbers), (name, d)


@EACH
def test_other_terms(series: sine_errors.Series) -> None:
    for kind in ("uniform", "normal"):
        found = sine_errors.terms(series, kind == "normal")
        terms = str(2 * len(series.sines))
        numbers = *found.sines, *found.singular, found.rank
        assert close(rows(f"{series.reach:g}", kind, terms), numbers), kind


@EACH
def test_the_line(series: sine_errors.Series) -> None:
    for name, numbers in sine_errors.line_rows(series).items():
        assert close(rows(f"{series.reach:g}", str(len(series.sines)), name), numbers), name


def test_the_recurrence() -> None:
    last = np.abs(SERIES[-1].sines)
    assert sine_errors.ORDERS[-1] == len(last)
    plain, off = (sine_errors.recurrence_errors(len(last), x) for x in (0.0, sine_errors.BEGINNING))
    for p in sine_errors.ORDERS:
        assert close(rows(f"$p$ = {p}"), (plain[p - 1], off[p - 1]))
    assert close(rows(r"$\sum_p \lvert c_p \rvert$ times it"), (last @ plain, last @ off))


def test_rounding() -> None:
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-7 + 2**-9), 3 * 2.0**-30, 0.0])
    assert sine_errors.to_bits(11)(x).tolist()[3:] == [3 * 2.0**-30, 0.0]
    assert sine_errors.to_float16(x)[3] == 0  # half of its smallest number rounds to even
    for bits in (8, 11):
        rounded = sine_errors.to_bits(bits)(x)
        mantissa = np.ldexp(np.frexp(rounded)[0], bits)
        assert (mantissa == np.rint(mantissa)).all()
        assert (np.abs(rounded - x) <= 2.0**-bits * np.abs(x)).all()


def test_two_parts_of_a_number_have_the_bits_of_both() -> None:
    random = np.random.default_rng(0)
    left, right = random.standard_normal((2, 5, 40))
    for name in ("float16", "bfloat16"):
        whole = np.abs(sine_errors.WAYS[name].product(left, right) - left @ right.T).max()
        split = sine_errors.WAYS[f"{name}, split"].product(left, right) - left @ right.T
        assert np.abs(split).max() < whole / 50


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sine_errors, "DEPTHS", (2,))
    monkeypatch.setattr(sine_errors, "WAYS", {"not rounded": sine_errors.Way()})
    monkeypatch.setattr(sine_errors, "COMPARED", ())
    sine_errors.main([])
    printed = capsys.readouterr().out
    assert "| 22 | 20 | 1.2e-4 | 6.0e-4 | 1.39 |" in printed
    assert printed.count("|---|") == 5
