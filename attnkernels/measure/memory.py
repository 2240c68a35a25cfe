"""Measure the time and the peak extra memory of one call on the CPU.

The memory of a call is the growth of the process's resident set at its peak. The allocator first
returns its free pages to the system (malloc_trim), and the kernel's high-water mark is reset
(writing 5 to /proc/self/clear_refs). Then the call runs, and VmHWM minus the earlier VmRSS is its
memory, whoever allocated it: PyTorch, a C++ std::vector, or a generated kernel. The result of the
call counts; its inputs do not. Nothing is slowed down, so the same run can be timed, and the figure
is exact to a few pages. The waste of an allocator counts (glibc leaves holes between blocks below
32 MiB). A buffer that a library keeps from an earlier call, and a page that is never touched, do
not count.

Without clear_refs in /proc (macOS, some containers), the allocation events of torch.profiler are
summed instead. They cover only PyTorch's allocator, and recording them slows the call down.
"""

from __future__ import annotations

import ctypes
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


class Measured(NamedTuple):
    """The cost of one call."""

    seconds: float
    peak_bytes: int


def measure(call: Callable[[], object]) -> Measured:
    """Run `call` once; return its wall-clock seconds and its peak extra bytes."""
    gc.collect()
    return _resident(call) if _can_reset() else _profiled(call)


def _can_reset() -> bool:
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {field}")


def _resident(call: Callable[[], object]) -> Measured:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc; musl returns large blocks on its own
        libc.malloc_trim(0)
    CLEAR_REFS.write_text(RESET_PEAK)
    before = _status_bytes("VmRSS")
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    peak = _status_bytes("VmHWM")
    del result  # kept alive until here, since the result counts
    return Measured(seconds, max(0, peak - before))


def _profiled(call: Callable[[], object]) -> Measured:
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return Measured(seconds, peak)
