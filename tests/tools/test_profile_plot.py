"""The profile's picture: its ticks and its legend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnkernels.profile import plot
from attnkernels.profile.axes import memory_axis, time_axis
from attnkernels.profile.sweep import Row


def labelled(axis: Callable[[Axes], None], low: float, high: float) -> list[str]:
    axes = Figure().subplots()
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axis(axes)
    axes.figure.draw_without_rendering()
    return [label.get_text() for label in axes.get_yticklabels()]


def test_times_are_in_the_units_of_people() -> None:
    wanted = ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s"]
    wanted += ["1 min", "10 min", "1 h", "10 h", "4 d"]
    assert labelled(time_axis, 1e-3, 4e8) == wanted
    assert labelled(memory_axis, 0.5, 2e4) == ["1 MiB", "10 MiB", "100 MiB", "1 GiB", "10 GiB"]


@pytest.mark.parametrize(
    "low, high, wanted",
    [
        (3.0, 7e4, ["10 ms", "100 ms", "1 s", "10 s", "1 min"]),
        (3.1, 8.2, ["4 ms", "5 ms", "6 ms", "7 ms", "8 ms"]),
        (20e3, 400e3, ["1 min", "20 s", "30 s", "2 min", "5 min"]),
        (3e6, 5e7, ["1 h", "10 h"]),
        (150e3, 250e3, ["200 s"]),
    ],
)
def test_a_short_axis_of_times_has_ticks(low: float, high: float, wanted: list[str]) -> None:
    found = labelled(time_axis, low, high)
    assert len(set(found)) >= 2
    assert set(wanted) <= set(found) if len(wanted) == 1 else set(found) == set(wanted)


def test_every_method_has_an_entry_in_the_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A naive formula that never fits has an estimate of its memory alone."""
    rows = [Row(2**16, "naive", skipped="does not fit", estimated_mib=1e7, does_not_fit=True)]
    rows += [Row(2**16, "fused", 27e3, 27e3, 1, 66.0, 40.0)]
    drawn: list[Figure] = []
    monkeypatch.setattr(plot, "write_figure", lambda path, figure, **options: drawn.append(figure))
    plot.draw(tmp_path / "p.png", rows, "title", 100.0)
    times, memory = drawn[0].axes
    entries = [text.get_text() for text in times.get_legend().get_texts()]
    assert entries == ["attnkernels", "naive formula, extrapolated"]
    for axes in (times, memory):
        low, high = axes.get_ylim()
        assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2
