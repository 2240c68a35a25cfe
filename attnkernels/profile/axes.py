"""Logarithmic axes of time and of memory, with ticks in the units in which people count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..measure.ticks import ticks
from .units import show_mib, show_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MINUTE, HOUR, DAY = 60e3, 3600e3, 86400e3  # in milliseconds
TIMES = {
    **{10.0**power: show_ms(10.0**power) for power in range(-3, 5)},  # 1 µs to 10 s
    **{count * MINUTE: f"{count} min" for count in (1, 10)},
    **{count * HOUR: f"{count} h" for count in (1, 10)},
    **{count * DAY: f"{count:,} d" for count in (4, 40, 400, 4000)},
}
SIZES = [0.001, 0.01, 0.1]  # in mebibytes
SIZES += [1024.0**step * power for step in (0, 1, 2) for power in (1, 10, 100)] + [1024.0**3]


def time_axis(axes: Axes, room: float = 1.0) -> None:
    """Label the vertical axis, in milliseconds; multiply its upper end by `room`."""
    _label(axes, list(TIMES), lambda ms: TIMES.get(ms) or show_ms(ms), room)


def memory_axis(axes: Axes, room: float = 1.0) -> None:
    """Label the vertical axis, in mebibytes; multiply its upper end by `room`."""
    _label(axes, SIZES, show_mib, room)


def _label(
    axes: Axes, preferred: Sequence[float], show: Callable[[float], str], room: float
) -> None:
    low, high = axes.get_ylim()
    high *= room
    shown = ticks(low, high, preferred)
    axes.set_yticks(shown, [show(tick) for tick in shown])
    axes.set_ylim(low, high)
