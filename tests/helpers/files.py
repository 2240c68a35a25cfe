"""Special files for the tests that write to them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest


def make_device(path: Path, minor: int) -> None:
    """Make a node like /dev/null (3) or /dev/full (7), which the tests do not touch."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        with path.open("wb"):
            pass
    except (OSError, AttributeError):
        pytest.skip("device nodes cannot be made here")
