"""What something costs as sequences grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import COLOURS, FAINT, INK, MARKERS, axes_or_new, numbers
from .fonts import as_given


def plot_cost(
    lengths: Sequence[int],
    series: Mapping[str, Sequence[float | None]],
    *,
    ylabel: str,
    ax: Axes | None = None,
) -> Figure:
    """Cost against length on logarithmic axes, one line a method: a power of it is a straight line.

    Args:
        lengths: L positive numbers, ascending.
        series: the name of a method to its L positive costs, None where it was not run.
        ylabel: what the cost is and its unit, "seconds" say.
        ax: axes to draw into; by default a new figure's.

    Returns:
        The figure; that of `ax` where it is given.

    Raises:
        TypeError: something is no number, or ax no axes.
        ValueError: there are no lengths or methods, lengths do not ascend, a method has not one
            cost for each length, or one that is not positive.
    """
    x = numbers("lengths", lengths, "(L,)", 1)
    if (x <= 0).any() or (x[1:] <= x[:-1]).any():
        raise ValueError(f"lengths is {x.tolist()}; they must be positive and ascend")
    if not series:
        raise ValueError("series is empty; there must be one method at least")
    lines = {}
    for name, costs in series.items():
        if len(costs) != len(x):
            raise ValueError(
                f"series[{name!r}] has {len(costs)} costs; there must be {len(x)}, one for each "
                "length"
            )
        run = [at for at, cost in enumerate(costs) if cost is not None]
        y = numbers(f"series[{name!r}]", [costs[at] for at in run], "(L,)", 1) if run else x[:0]
        if (y <= 0).any():
            raise ValueError(f"series[{name!r}] has {y.min():g}; a cost is positive")
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
    ax.grid(True, color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(colors=INK, labelsize=9, length=3)
    for text in ax.legend(frameon=False, labelcolor=INK).get_texts():
        text.update(as_given(lines))
    return figure
