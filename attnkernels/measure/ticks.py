"""Choose round ticks for a logarithmic axis: two or more, however short it is."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

STEPS = ((1,), (1, 2, 5), tuple(range(1, 10)))  # within a decade, from coarse to fine
FINEST = 12  # digits by which two ticks differ


def ticks(low: float, high: float, *preferred: Sequence[float]) -> list[float]:
    """Return round numbers in [low, high], two or more.

    Args:
        low, high: positive, low < high.
        preferred: numbers to use, from coarse to fine, if two or more are in the range.
    """
    decades = range(floor(log10(low)) - 1, ceil(log10(high)) + 1)
    for numbers in (
        *preferred,
        *([k * 10.0**e for e in decades for k in steps] for steps in STEPS),
    ):
        found = [number for number in numbers if low <= number <= high]
        if len(found) >= 2:
            return found
    digits = 0
    while len(found) < 2 and digits < FINEST:  # less than a digit apart: equidistant
        digits += 1
        unit = 10.0 ** (floor(log10(high)) - digits)
        found = [unit * k for k in range(ceil(low / unit), floor(high / unit) + 1)]
    return found
