"""Identify the code that a figure belongs to."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str | None:
    """Return the measured commit, with "-dirty" if files differ from it; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        ran = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return ran.stdout.strip() or None
