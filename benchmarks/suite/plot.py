"""Plot bars of speed-up over eager PyTorch, on a logarithmic axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnkernels.measure.files import write_figure
from attnkernels.measure.palette import AMBER, BLUE, FAINT, GREEN, GRID, INK, PINK, SKY
from attnkernels.measure.wording import count
from attnkernels.profile.units import show_ratio

COLOURS = {"compile": PINK, "keras": AMBER, "keops": GREEN, "native": BLUE, "triton": SKY}
TITLES = {"forward": "Forward", "both": "Forward + backward"}


def draw(path: Path, result: dict[str, Any]) -> bool:
    """Write the figure of the first dtype: one panel per direction, one group of bars per case.

    The suffix of `path` selects the format; without one it is PNG. If there is nothing to compare,
    return False and write nothing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    dtype = result["cases"][0]["dtype"]
    factors = speed_ups(result, dtype)
    directions = [direction for direction in TITLES if any(d == direction for _, d, _ in factors)]
    if not directions:
        return False
    places, labels = _places(factors)
    height = 1.8 + 0.2 * max(places.values())
    figure = Figure(figsize=(5.2 * len(directions) + 1.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(directions), squeeze=False, sharex=True, sharey=True)[0]
    for axes, direction in zip(panels, directions, strict=True):
        for (case, d, provider), factor in factors.items():
            if d == direction:
                _bar(axes, places[case, provider], provider, factor)
        axes.set_title(TITLES[direction], loc="left", fontsize=11, color=INK)
        _dress(axes)
    axes.set_yticks(list(labels.values()), list(labels))
    axes.set_ylim(max(places.values()) + 0.8, -0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 2)  # room for the numbers

    used = {provider for _, _, provider in factors}
    patches = [Patch(color=COLOURS[name], label=name) for name in COLOURS if name in used]
    style: dict[str, Any] = {"frameon": False, "labelcolor": INK, "ncols": len(patches)}
    figure.legend(handles=patches, loc="outside lower center", **style)
    about = (
        f"{result['cpu']}, {count(result['threads'], 'thread')}, torch {result['torch']}, {dtype}"
    )
    figure.suptitle(f"Times faster than eager PyTorch\n{about}", color=INK, x=0.012, ha="left")

    write_figure(path, figure, dpi=150)
    return True


def speed_ups(result: dict[str, Any], dtype: str) -> dict[tuple[str, str, str], float]:
    """Return the speed-up over eager by case, direction and provider."""
    rows = [row for row in result["cases"] if row["dtype"] == dtype]
    eager = {
        (row["case"], row["direction"]): row["median_ms"]
        for row in rows
        if row["provider"] == "eager"
    }
    return {
        (row["case"], row["direction"], row["provider"]): (
            eager[row["case"], row["direction"]] / row["median_ms"]
        )
        for row in rows
        if row["provider"] != "eager" and (row["case"], row["direction"]) in eager
    }


def _places(
    factors: dict[tuple[str, str, str], float],
) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """Return the position of each bar, the same in every panel, and the centre of each case."""
    places: dict[tuple[str, str], float] = {}
    labels: dict[str, float] = {}
    place = 0.0
    for case in dict.fromkeys(case for case, _, _ in factors):
        present = {provider for c, _, provider in factors if c == case}
        first = place
        for provider in COLOURS:
            if provider in present:
                places[case, provider] = place
                place += 1
        labels[case] = (first + place - 1) / 2
        place += 0.7
    return places, labels


def _bar(axes: Any, place: float, provider: str, factor: float) -> None:
    # Bars start at 1, no gain: to the right is faster, to the left slower.
    axes.barh(place, factor - 1, left=1, height=0.86, color=COLOURS[provider])
    axes.annotate(
        show_ratio(factor),
        (max(factor, 1), place),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK,
        fontweight="bold" if provider == "native" else "normal",
    )


def _dress(axes: Any) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: show_ratio(value).replace(".0x", "x"))
    axes.axvline(1, color=INK, linewidth=1)
    axes.minorticks_off()
    axes.grid(True, axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=0)
