"""Time and memory against length, on logarithmic axes."""

from __future__ import annotations

import os
from pathlib import Path

from attnkernels.profiling.sweep import Row
from attnkernels.profiling.units import show_mib, show_ms

# Okabe and Ito's palette: told apart with every common colour vision.
COLOURS = {"naive": "#D55E00", "compile": "#CC79A7", "fused": "#0072B2"}
MARKERS = {"naive": "o", "compile": "D", "fused": "s"}
LABELS = {"naive": "naive formula", "compile": "torch.compile", "fused": "attnkernels"}
INK, FAINT = "#333333", "#8a8a8a"


def draw(path: Path, rows: list[Row], title: str, free_mib: float) -> None:
    """Write the picture: measurements filled, extrapolations hollow; in one step.

    The format follows the suffix of `path` (PNG where it has none).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    times, memory = figure.subplots(1, 2)
    _panel(times, rows, "ms", "estimated_ms", "time")
    _panel(memory, rows, "peak_mib", "estimated_mib", "peak extra memory")
    _label_units(times, show_ms)
    _label_units(memory, show_mib)
    memory.axhline(free_mib, color=FAINT, linewidth=1, linestyle=(0, (6, 3)), zorder=1)
    memory.annotate(
        f"free memory, {show_mib(free_mib)}",
        (0.015, free_mib),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=8.5,
        color=FAINT,
    )
    _say_what_does_not_fit(memory, rows)
    times.legend(frameon=False, loc="upper left", labelcolor=INK)
    figure.suptitle(title, fontsize=12, color=INK)

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:] or "png"
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format=kind, dpi=150)
    os.replace(partial, path)


def _panel(axes, rows: list[Row], field: str, estimated: str, title: str) -> None:
    lengths = sorted({row.length for row in rows})
    for name, colour in COLOURS.items():
        mine = [row for row in rows if row.method == name]
        measured = [(r.length, getattr(r, field)) for r in mine if getattr(r, field)]
        guessed = [
            (r.length, getattr(r, estimated)) for r in mine if r.skipped and getattr(r, estimated)
        ]
        style = {"color": colour, "marker": MARKERS[name], "markersize": 6}
        if measured:
            axes.plot(*zip(*measured), **style, linewidth=2, label=LABELS[name], zorder=3)
        if guessed:
            line = measured[-1:] + guessed
            axes.plot(*zip(*line), color=colour, linewidth=1.2, linestyle=":", zorder=2)
            label = f"{LABELS[name]}, extrapolated" if name == "naive" else None
            axes.plot(
                *zip(*guessed),
                **style,
                markerfacecolor="white",
                linestyle="none",
                label=label,
                zorder=3,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [_short(length) for length in lengths])
    axes.set_xlabel("characters", color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.minorticks_off()
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3)


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)


def _label_units(axes, show) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: show(value))


def _say_what_does_not_fit(axes, rows: list[Row]) -> None:
    refused = [row for row in rows if row.method == "naive" and row.estimated_mib]
    refused = [row for row in refused if row.skipped and "fit" in row.skipped]
    if not refused:
        return
    row = refused[-1]
    axes.annotate(
        f"needs {show_mib(row.estimated_mib or 0)},\ndoes not fit",
        (row.length, row.estimated_mib or 0),
        xytext=(-10, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9,
        color=COLOURS["naive"],
    )
