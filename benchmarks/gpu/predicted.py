"""Show what `python -m benchmarks.predict --update` has predicted, beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.suite.rates import Result

FILE = Path(__file__).with_suffix(".json")  # microseconds by dtype, case and direction


def beside(result: Result) -> str:
    """Return a line per row of the CUDA kernels that has a prediction: of an H100, an estimate."""
    predicted: Any = json.loads(FILE.read_text(encoding="utf-8"))
    lines = []
    for row in result["cases"]:
        us = predicted.get(row["dtype"], {}).get(row["case"], {}).get(row["direction"])
        if us is None or row["provider"] != "native":
            continue
        measured = 1e3 * row["median_ms"]
        lines.append(
            f"  {row['case']} {row['direction']} {row['dtype']}: {measured:.4g} µs where "
            f"{us:.4g} were predicted, {measured / us:.2f}x"
        )
    return "\n".join(["native, beside benchmarks.predict", *lines]) if lines else ""
