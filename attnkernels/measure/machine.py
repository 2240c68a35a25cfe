"""Describe the machine: its processor, its free memory, and the versions it runs."""

from __future__ import annotations

import os
import platform
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch

from .. import __version__

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
# The files of a control group, and the entry of its memory.stat for pages that it can drop.
GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


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

    On Linux this is MemAvailable of /proc/meminfo, or if that is less, what the control groups
    (a container) or the limit of the address space leave. Elsewhere it is half of the physical
    memory, as an estimate.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":") for line in lines if ":" in line)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([available, *_allowances()])


def address_space() -> int:
    """Return the bytes of this process's address space, on Linux."""
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _allowances() -> list[int]:
    """Return the bytes that each limit on this process leaves."""
    left = []
    for group in _groups():
        for limit, used, cache in GROUP_FILES:
            try:
                most = int((group / limit).read_text())
                now = int((group / used).read_text())
            except (OSError, ValueError):  # no such group, or "max": no limit
                continue
            left.append(max(0, most - now + _entry(group / "memory.stat", cache)))
    import resource  # Linux has it

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        left.append(max(0, most - address_space()))
    return left


def _groups() -> set[Path]:
    """Return the folders of the control groups of this process and of those above them."""
    found = {CGROUP}
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = CGROUP / "memory" if controllers else CGROUP
        group = top / path.lstrip("/")
        found |= {each for each in (group, *group.parents) if each.is_relative_to(top)}
    return found


def _entry(statistics: Path, name: str) -> int:
    try:
        lines = statistics.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)


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
