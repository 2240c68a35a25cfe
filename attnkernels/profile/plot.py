"""Plot time and memory against length, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..measure.files import write_figure
from ..measure.palette import BLUE, FAINT, GREEN, GRID, INK, ORANGE, PINK
from ..measure.wording import printable
from .axes import memory_axis, time_axis
from .sweep import Row
from .units import show_mib, show_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"naive": ORANGE, "compile": PINK, "fused": BLUE, "window": GREEN}
MARKERS = {"naive": "o", "compile": "D", "fused": "s", "window": "^"}
LABELS = {
    "naive": "naive formula",
    "compile": "torch.compile",
    "fused": "attnkernels",
    "window": "attnkernels, window",
}
LEGEND = 4.0  # factor by which the axes end above the data, where the legend is


def draw(path: Path, rows: list[Row], title: str, free_mib: float) -> None:
    """Write the figure, with measurements filled and extrapolations hollow.

    The suffix of `path` selects the format; without one it is PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    times, memory = figure.subplots(1, 2)
    _panel(times, rows, "ms", "estimated_ms", "Time")
    _panel(memory, rows, "peak_mib", "estimated_mib", "Peak extra memory")
    time_axis(times, LEGEND)
    memory_axis(memory, LEGEND)
    _mark_free_memory(memory, free_mib)
    _label_last(times, rows, "ms", show_ms)
    _label_last(memory, rows, "peak_mib", show_mib)
    _say_what_does_not_fit(memory, rows)
    shown = {  # a method that was never run has its estimated memory only
        label: line
        for axes in (times, memory)
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    style: dict[str, Any] = {"frameon": False, "loc": "upper left", "labelcolor": INK}
    times.legend(shown.values(), shown.keys(), **style)
    title = printable(title)  # the name of the text, in which a dollar is a dollar
    figure.suptitle(title, fontsize=12, color=INK, x=0.012, ha="left", parse_math=False)

    write_figure(path, figure, dpi=150)


def _panel(axes: Axes, rows: list[Row], field: str, estimated: str, title: str) -> None:
    lengths = sorted({row.length for row in rows})
    for name, colour in COLOURS.items():
        mine = [row for row in rows if row.method == name]
        measured = [(r.length, getattr(r, field)) for r in mine if getattr(r, field)]
        guessed = [
            (r.length, getattr(r, estimated)) for r in mine if r.skipped and getattr(r, estimated)
        ]
        style: dict[str, Any] = {"color": colour, "marker": MARKERS[name], "markersize": 6}
        if measured:
            axes.plot(*_columns(measured), **style, linewidth=2, label=LABELS[name], zorder=3)
        if guessed:
            line = measured[-1:] + guessed
            axes.plot(*_columns(line), color=colour, linewidth=1.2, linestyle=":", zorder=2)
            style.update(markerfacecolor="white", linestyle="none")
            label = f"{LABELS[name]}, extrapolated"
            axes.plot(*_columns(guessed), **style, label=label, zorder=3)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [_short(length) for length in lengths])
    axes.set_xlabel("characters", color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.minorticks_off()
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3)


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)


def _mark_free_memory(axes: Axes, free_mib: float) -> None:
    if free_mib > axes.get_ylim()[1]:
        return  # no measurement came near it
    axes.axhline(free_mib, color=FAINT, linewidth=1, linestyle=(0, (6, 3)), zorder=1)
    axes.annotate(
        f"free memory, {show_mib(free_mib)}",
        (0.015, free_mib),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=9,
        color=FAINT,
    )


def _label_last(axes: Axes, rows: list[Row], field: str, show: Callable[[float], str]) -> None:
    row = next((row for row in reversed(rows) if row.method == "fused" and row.ms), None)
    if row is not None:
        axes.annotate(
            show(getattr(row, field)),
            (row.length, getattr(row, field)),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=COLOURS["fused"],
        )


def _say_what_does_not_fit(axes: Axes, rows: list[Row]) -> None:
    refused = [
        row for row in rows if row.method == "naive" and row.does_not_fit and row.estimated_mib
    ]
    for row in refused[:1] + refused[1:][-1:]:
        needs = show_mib(row.estimated_mib or 0)
        axes.annotate(
            f"needs {needs},\ndoes not fit" if row is refused[0] else f"needs {needs}",
            (row.length, row.estimated_mib or 0),
            xytext=(9, 4) if row.length == rows[0].length else (-9, 2),
            textcoords="offset points",
            ha="left" if row.length == rows[0].length else "right",
            fontsize=9,
            color=COLOURS["naive"],
        )
