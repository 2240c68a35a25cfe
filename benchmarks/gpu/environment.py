"""Record the environment of a run: the device, its clocks, and the versions."""

from __future__ import annotations

import shutil
import subprocess

import torch

from attnkernels import info
from benchmarks.suite.rates import Result

SECONDS = 20  # limit of a tool's answer
PROPERTIES = (
    "name",
    "gcnArchName",
    "major",
    "minor",
    "multi_processor_count",
    "clock_rate",
    "memory_clock_rate",
    "memory_bus_width",
    "L2_cache_size",
    "total_memory",
    "shared_memory_per_multiprocessor",
    "regs_per_multiprocessor",
)
NVIDIA_SMI = (
    "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,power.limit,"
    "temperature.gpu,utilization.gpu"
)
# The first one found is asked.
TOOLS = (
    ["nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv"],
    ["amd-smi", "metric", "--clock", "--power", "--temperature"],
)


def environment(result: Result, device: str) -> str:
    """Return the page: the head of the result, the device, its tool's output, attnkernels.info."""
    head = {
        name: value
        for name, value in result.items()
        if name not in ("check", "ceiling", "sanitizer", "cases")
    }
    head |= {"CUDA of torch": torch.version.cuda, "HIP of torch": torch.version.hip}
    parts = [_list(head)]
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        known = {
            name: getattr(properties, name) for name in PROPERTIES if hasattr(properties, name)
        }
        parts += [_list({"devices": torch.cuda.device_count(), **known}), _tool()]
    return "\n\n".join([*parts, info.report()]) + "\n"


def _list(entries: dict[str, object]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in entries.items())


def _tool() -> str:
    for command in TOOLS:
        if shutil.which(command[0]):
            try:
                ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                return f"{command[0]} does not answer"
            return ran.stdout.strip() or ran.stderr.strip()
    return "neither nvidia-smi nor amd-smi is here"
