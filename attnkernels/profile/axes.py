"""Logarithmic axes of time and of memory, with ticks in the units in which people count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..measure.ticks import ticks
from .units import show_mib, show_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MINUTE, HOUR, DAY = 60e3, 3600e3, 86400e3  # milliseconds
TIMES = [10.0**power for power in range(-3, 5)]  # in milliseconds: 1 µs to 10 s
TIMES += [MINUTE, 10 * MINUTE, HOUR, 10 * HOUR, *(days * DAY for days in (4, 40, 400, 4000))]
FINE = [step * 10.0**power for power in range(-3, 4) for step in (1, 2, 5)]
FINE += [10e3, 20e3, 30e3, *(k * MINUTE for k in (1, 2, 5, 10, 20, 30))]
FINE += [*(k * HOUR for k in (1, 2, 5, 10)), *(k * DAY for k in (1, 2, 4, 10, 20, 40, 100))]
SIZES = [0.001, 0.01, 0.1]  # in mebibytes
SIZES += [1024.0**step * power for step in (0, 1, 2) for power in (1, 10, 100)] + [1024.0**3]


def time_axis(axes: Axes, room: float = 1.0) -> None:
    """Label the vertical axis, in milliseconds; multiply its upper end by `room`."""
    _label(axes, (TIMES, FINE), _time, room)


def memory_axis(axes: Axes, room: float = 1.0) -> None:
    """Label the vertical axis, in mebibytes; multiply its upper end by `room`."""
    _label(axes, (SIZES,), show_mib, room)


def _time(ms: float) -> str:
    """Format a tick in the largest unit of which it is a whole number."""
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if ms >= unit and ms % unit == 0:
            return f"{ms / unit:,.0f} {name}"
    return show_ms(ms) if ms < 1e3 else f"{ms / 1e3:,g} s"


def _label(
    axes: Axes, preferred: Sequence[list[float]], show: Callable[[float], str], room: float
) -> None:
    low, high = axes.get_ylim()
    high *= room
    shown = ticks(low, high, *preferred)
    axes.set_yticks(shown, [show(tick) for tick in shown])
    axes.set_ylim(low, high)
