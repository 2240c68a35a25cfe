"""The table of sines: the same for Python and for C++, and as accurate as it says."""

from __future__ import annotations

import pytest

from attnkernels.ops.series import SERIES, SLOPE_ERROR, VALUE_ERROR
from tools import sines


def test_both_languages_have_the_table_that_was_written() -> None:
    table = list(SERIES)
    assert sines.HEADER.read_text(encoding="utf-8") == sines.header(table)
    assert sines.FILE.read_text(encoding="utf-8") == sines.written(table)


def test_another_table_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sines"])
    assert sines.main() == 0
    monkeypatch.setattr(sines, "SERIES", SERIES[:-1])
    assert sines.main() == 1
    assert "series.h has another table" in capsys.readouterr().out


@pytest.mark.parametrize("each", SERIES, ids=lambda each: f"{each.reach:g}")
def test_errors(each: sines.Series) -> None:
    value, slope = sines.errors(each)
    assert value <= VALUE_ERROR and slope <= SLOPE_ERROR
