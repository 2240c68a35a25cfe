"""Draw cost against the length of a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..measure.palette import GRID
from ..measure.ticks import ticks
from .figures import COLOURS, FAINT, INK, MARKERS, axes_or_new, numbers
from .fonts import as_given, shortened, wrapped

STYLES = ("-", "--", ":", "-.")  # of lines, by variant
NAME = 48  # letters of a name, at most


def plot_cost(
    lengths: Sequence[int],
    series: Mapping[str | tuple[str, str], Sequence[float | None]],
    *,
    ylabel: str,
    ax: Axes | None = None,
) -> Figure:
    """Draw cost against length on logarithmic axes, one line per method.

    A power law is a straight line.

    Args:
        lengths: L positive numbers, ascending.
        series: maps the name of each method to its L positive costs, None where it was not run. A
            pair (method, variant) has the colour of its method and the line style of its variant.
        ylabel: the cost and its unit, such as "seconds".
        ax: axes to draw into; by default those of a new figure.

    Returns:
        The new figure, or the figure of `ax`.

    Raises:
        TypeError: lengths or costs are not numbers, or ax is not matplotlib Axes.
        ValueError: there are no lengths, methods or costs, lengths do not ascend, a method does not
            have one cost per length, or a cost is not positive.
    """
    x = numbers("lengths", lengths, "(L,)", 1)
    if (x <= 0).any() or (x[1:] <= x[:-1]).any():
        raise ValueError(f"lengths must be positive and ascend, got {x.tolist()}")
    if not series:
        raise ValueError("series must have one method or more, got none")
    lines = {}
    for name, costs in series.items():
        if len(costs) != len(x):
            raise ValueError(
                f"series[{name!r}] must have {len(x)} costs, one per length, got {len(costs)}"
            )
        run = [at for at, cost in enumerate(costs) if cost is not None]
        y = numbers(f"series[{name!r}]", [costs[at] for at in run], "(L,)", 1) if run else x[:0]
        if (y <= 0).any():
            raise ValueError(f"series[{name!r}] must hold positive costs, got {y.min():g}")
        lines[name] = x[run], y
    if not any(len(cost) for _, cost in lines.values()):
        raise ValueError("series must have one cost or more, got only None")

    figure, ax = axes_or_new(ax, 6.4, 4.4)
    pairs = {name: name if isinstance(name, tuple) else (name, "") for name in lines}
    looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    colours = dict(zip(dict.fromkeys(method for method, _ in pairs.values()), looks, strict=False))
    variants = dict.fromkeys(variant for _, variant in pairs.values())
    styles = dict(zip(variants, cycle(STYLES), strict=False))
    for name, (at, cost) in lines.items():
        method, variant = pairs[name]
        colour, marker = colours[method]
        ax.plot(
            at,
            cost,
            color=colour,
            marker=marker,
            markersize=6,
            markerfacecolor=colour if styles[variant] == STYLES[0] else "white",
            linestyle=styles[variant],
            linewidth=2,
            label=shortened(", ".join(filter(None, pairs[name])), NAME),
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(x, [f"{each:,.10g}" for each in x], rotation=45 if len(x) > 5 else 0)
    low, high = ax.get_ylim()
    if sum(low <= tick <= high for tick in ax.get_yticks()) < 2:  # less than a decade
        shown = ticks(low, high)
        ax.set_yticks(shown, [f"{tick:,.10g}" for tick in shown])
    ax.minorticks_off()
    ax.set_xlabel("length", color=INK)
    ax.set_ylabel(wrapped(ylabel, NAME), color=INK, **as_given([ylabel]))
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(colors=INK, labelsize=9, length=3)
    legend = ax.legend(frameon=False, labelcolor=INK, handlelength=3)
    for text in legend.get_texts():
        text.update(as_given([text.get_text()]))
    return figure
