"""Choose round ticks for a logarithmic axis: two or more, however short it is."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

STEPS = ((1,), (1, 2, 5), tuple(range(1, 10)))  # within a decade, from coarse to fine
FINEST = 12  # digits by which two ticks differ


def ticks(low: float, high: float, preferred: Sequence[float] = ()) -> list[float]:
    """Return round numbers in [low, high], two or more.

    Args:
        low, high: positive, low < high.
        preferred: the numbers to use if two or more of them are in the range.
    """
    found = _within(low, high, preferred)
    decades = range(floor(log10(low)) - 1, ceil(log10(high)) + 1)
    for steps in STEPS:
        if len(found) < 2:
            found = _within(low, high, [step * 10.0**k for k in decades for step in steps])
    digits = 0
    while len(found) < 2 and digits < FINEST:  # less than a digit apart: equidistant
        digits += 1
        unit = 10.0 ** (floor(log10(high)) - digits)
        found = [unit * k for k in range(ceil(low / unit), floor(high / unit) + 1)]
    return found


def _within(low: float, high: float, numbers: Sequence[float]) -> list[float]:
    return [number for number in numbers if low <= number <= high]
