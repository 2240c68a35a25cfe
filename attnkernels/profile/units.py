"""Format quantities for people."""

from __future__ import annotations


def show_ms(ms: float) -> str:
    """Format milliseconds in three digits: 31 µs, 4.2 ms, 1.25 s, 3 min, 2.8 h."""
    if ms < 0.9995:
        return f"{ms * 1e3:.3g} µs"
    if ms < 999.5:
        return f"{ms:.3g} ms"
    if ms < 119.5e3:
        return f"{ms / 1e3:.3g} s"
    return f"{ms / 60e3:.0f} min" if ms < 119.5 * 60e3 else f"{ms / 3600e3:,.1f} h"


def show_mib(mib: float) -> str:
    """Format mebibytes in three digits: 0.25 MiB, 31 MiB, 4.2 GiB, 1.25 TiB."""
    if mib < 0.995:
        return f"{mib:.2f} MiB"
    size, unit = mib, "MiB"
    for larger in ("GiB", "TiB"):
        if size >= 999.5:
            size, unit = size / 1024, larger
    return f"{size:.3g} {unit}"


def show_ratio(ratio: float) -> str:
    """Format a factor: 0.82x, 5.3x, 61x, 1,230x."""
    digits = 2 if ratio < 1 else 1 if ratio < 10 else 0
    return f"{ratio:,.{digits}f}x"


def show_rate(rate: float) -> str:
    """Format a rate, two digits below 1 and three or more above: 0.012, 0.24, 13.1, 4,181."""
    return f"{rate:.2g}" if rate < 1 else f"{rate:.3g}" if rate < 999.5 else f"{rate:,.0f}"
