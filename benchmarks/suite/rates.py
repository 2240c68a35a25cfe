"""Compare with the ceiling of the machine: the last columns of a table, by device."""

from __future__ import annotations

from typing import Any

from attnkernels.measure.wording import count
from attnkernels.profile.sweep import window_pairs
from attnkernels.profile.units import show_rate
from benchmarks.ceiling import cpu as ceiling

NOTHING = "–"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Result = dict[str, Any]
Row = dict[str, Any]


def columns(result: Result) -> list[str]:
    """Return the headings."""
    if result["device"] == "cpu":
        return ["of ceiling"]
    return ["elements/clk/SM", "of ceiling", "of copy"]


def rates(result: Result, row: Row | None) -> dict[str, str]:
    """Return the entries of one measurement, by heading."""
    found = dict.fromkeys(columns(result), NOTHING)
    if row is None:
        return found
    batch, n, m, d, dv = row["shape"]
    pairs = window_pairs(n, row["window"]) if "window" in row else n * m
    elements, known = batch * pairs * d, result["ceiling"]
    if result["device"] == "cpu":
        limit = ceiling.seconds(known, elements, row["direction"], result["threads"])
        return found | ({"of ceiling": _percent(1e3 * limit / row["median_ms"])} if limit else {})
    if "max_mhz" not in known:
        return found
    rate = elements / (row["median_ms"] * known["max_mhz"] * 1e3 * known["sms"])
    found["elements/clk/SM"] = show_rate(rate)
    if row["direction"] != "both":
        if "scores" in known:
            found["of ceiling"] = _percent(rate / known["scores"])
        if n == 1:
            moved = BYTES[row["dtype"]] * (batch * (m * d + m * dv + d + dv) + d)
            found["of copy"] = _percent(moved / row["median_ms"] / 1e6 / copy_gb(known))
    return found


def spreads(result: Result) -> list[float]:
    """Return the median over the minimum of every measurement."""
    return [row["median_ms"] / row["min_ms"] for row in result["cases"] if row["min_ms"]]


def copy_gb(known: dict[str, float]) -> float:
    """Return the faster copy of a GPU's ceiling, in 10^9 bytes per second."""
    return max(known["torch_copy_gb"], known.get("copy_gb", 0))


def machine(result: Result) -> str:
    """Return the machine of a result."""
    if result["device"] == "cpu":
        return f"{result['cpu']}, {count(result['threads'], 'thread')}"
    return f"{result['device']}, Triton {result['triton']}"


def about(result: Result) -> str:
    """Explain the columns; return "" if no ceiling was measured."""
    known = result["ceiling"]
    if not known or (result["device"] != "cpu" and "max_mhz" not in known):
        return ""
    if result["device"] == "cpu":
        return (
            "The ceiling is that of `benchmarks/ceiling/cpu.cpp` on every thread; one core does "
            f"{known['scores_g']:.1f} G elements/s forward, {known['gradients_g']:.1f} in the "
            "backward's sweep."
        )
    said = (
        "`graph` is the forward replayed from a CUDA graph. Elements, B n m d of them in either "
        f"pass, are counted per clock at {known['max_mhz']:.0f} MHz and per SM, of {known['sms']}; "
        f"a step is compared with a copy of as many bytes, at {copy_gb(known):.0f} GB/s."
    )
    if "scores" in known:
        said += (
            " The ceiling is that of `benchmarks/ceiling/gpu.cu`: "
            f"{known['scores']:.1f} elements/clk/SM forward, {known['tanh_scores']:.1f} by the "
            "tanh of the hardware."
        )
    return said


def _percent(part: float) -> str:
    return f"{100 * part:.0f}%"
