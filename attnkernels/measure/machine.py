"""Describe the machine: its processor, its free memory, and the versions it runs."""

from __future__ import annotations

import os
import platform
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch

from .. import __version__

CGROUP = Path("/sys/fs/cgroup")


def cpu_name() -> str:
    """Return the processor's name as the operating system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def free_memory() -> int:
    """Return the bytes that can be allocated now without swapping.

    On Linux this is MemAvailable of /proc/meminfo, or the remaining allowance of the control group
    (a container) if that is less. Elsewhere it is half of the physical memory, as an estimate.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":") for line in lines if ":" in line)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(available, _container_allowance(available))


def _container_allowance(default: int) -> int:
    try:
        limit = int((CGROUP / "memory.max").read_text())
        return max(0, limit - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return default


def triton_version() -> str | None:
    """Return Triton's version whatever its distribution is called (ROCm renames it), or None."""
    names = packages_distributions().get("triton")
    return version(names[0]) if names else None


def versions() -> dict[str, str]:
    """Return the versions that every measurement depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "attnkernels": __version__,
    }
