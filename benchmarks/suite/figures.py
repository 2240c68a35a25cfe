"""Write the rows of a benchmark with what they were measured on."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from attnkernels.measure import files
from attnkernels.measure.machine import cpu_name
from benchmarks.suite.commit import commit


def write(path: Path, rows: list[Any], **more: Any) -> None:
    """Write the processor, threads, versions, commit and date, `more`, and the rows as JSON."""
    result = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        **more,
        "rows": rows,
    }
    files.write(path, json.dumps(result, indent=1) + "\n")
