"""Draw cost against the length of a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..measure.palette import GRID
from .figures import COLOURS, FAINT, INK, MARKERS, axes_or_new, numbers
from .fonts import as_given


def plot_cost(
    lengths: Sequence[int],
    series: Mapping[str, Sequence[float | None]],
    *,
    ylabel: str,
    ax: Axes | None = None,
) -> Figure:
    """Draw cost against length on logarithmic axes, one line per method.

    A power law is a straight line.

    Args:
        lengths: L positive numbers, ascending.
        series: maps the name of each method to its L positive costs, None where it was not run.
        ylabel: the cost and its unit, such as "seconds".
        ax: axes to draw into; by default those of a new figure.

    Returns:
        The new figure, or the figure of `ax`.

    Raises:
        TypeError: lengths or costs are not numbers, or ax is not matplotlib Axes.
        ValueError: there are no lengths or methods, lengths do not ascend, a method does not have
            one cost per length, or a cost is not positive.
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

    figure, ax = axes_or_new(ax, 6.4, 4.4)
    looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    for (name, (at, cost)), (colour, marker) in zip(lines.items(), looks, strict=False):
        ax.plot(at, cost, color=colour, marker=marker, markersize=6, linewidth=2, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(x, [f"{each:,.10g}" for each in x], rotation=45 if len(x) > 5 else 0)
    ax.minorticks_off()
    ax.set_xlabel("length", color=INK)
    ax.set_ylabel(ylabel, color=INK, **as_given([ylabel]))
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(colors=INK, labelsize=9, length=3)
    for text in ax.legend(frameon=False, labelcolor=INK).get_texts():
        text.update(as_given(lines))
    return figure
