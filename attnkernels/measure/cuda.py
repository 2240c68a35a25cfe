"""Measure on a CUDA or ROCm device: events for time, PyTorch's allocator for memory.

A call is timed from the moment the idle device could begin until it is done. The time of a short
call therefore includes its launch, as it does for the caller.
"""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .machine import triton_version, versions
from .memory import Measured

# Elements per clock on an SM of compute capability 9.0 (H100, H200): its special function units do
# 16 operations per clock, and a tanh takes one; its FP32 units do 128, and four elements that share
# a reciprocal take 14 (docs/math.md, section 9).
CEILINGS: dict[tuple[int, int], dict[str, float]] = {
    (9, 0): {"one hardware tanh per element": 16, "a shared reciprocal": 36},
}


def why_not() -> str | None:
    """Return None if there is a device, otherwise a sentence that says what is missing."""
    if not torch.backends.cuda.is_built():
        return (
            f"torch {torch.__version__} is built without CUDA and without ROCm; install one that"
            " has the GPU's"
        )
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} finds no GPU here (does nvidia-smi, or rocm-smi, see one?)"
        )
    return None


class Cuda:
    """The current device of torch.cuda; CUDA_VISIBLE_DEVICES selects another."""

    type = "cuda"
    warms_up = True  # Triton compiles; cuBLAS and the allocator reserve memory that they keep

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.model = properties.name
        self.sms = properties.multi_processor_count
        self.clock_mhz = clock_mhz(properties)
        known = self.clock_mhz is not None
        at = f" at up to {self.clock_mhz:,.0f} MHz" if known else ", their clock unknown"
        self.name = f"{self.model}, {self.sms} SMs{at}"
        self.clocks_per_second = self.sms * self.clock_mhz * 1e6 if self.clock_mhz else None
        capability = (properties.major, properties.minor)
        self.ceilings: Mapping[str, float] = (
            CEILINGS.get(capability, {}) if torch.version.hip is None else {}
        )

    def facts(self) -> dict[str, Any]:
        return {
            "gpu": self.model,
            "sms": self.sms,
            "sm_clock_mhz": self.clock_mhz,
            "forward_ceilings": dict(self.ceilings),
            "versions": {**versions(), **_compute_versions()},
        }

    def free_memory(self) -> int:
        """Return the driver's free bytes plus those that PyTorch's allocator holds unused."""
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def measure(self, call: Callable[[], object]) -> Measured:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = self.seconds(call)
        return Measured(seconds, torch.cuda.max_memory_allocated() - before)

    def seconds(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def clock_mhz(properties: Any) -> float | None:
    """Return the highest SM clock from PyTorch or nvidia-smi; None if neither reports it."""
    kilohertz = getattr(properties, "clock_rate", None)
    if kilohertz:
        return kilohertz / 1e3
    question = ["--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--id=GPU-{properties.uuid}", *question],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return float(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError):
        return None


def _compute_versions() -> dict[str, str]:
    found = {
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "triton": triton_version(),
    }
    return {name: each for name, each in found.items() if each is not None}
