"""Measure the ceiling of a GPU: with `gpu.cu` if there is nvcc, and with PyTorch itself.

python -m benchmarks.ceiling.gpu
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import torch

from attnkernels.measure.cuda import clock_mhz
from benchmarks.ceiling.cpu import compiled
from benchmarks.suite.meters import Call, meter

SOURCE = Path(__file__).with_name("gpu.cu")
FLAGS = ["-O3", "-std=c++17"]
COPIED = 2**30  # bytes, more than any cache holds
SECONDS = 60  # limit of its run time; it takes one or two


def device_rates() -> dict[str, float]:
    """Return `sms` and, if known, `max_mhz`, the factors of a rate per clock per SM."""
    properties = torch.cuda.get_device_properties(0)
    rates: dict[str, float] = {"sms": properties.multi_processor_count}
    mhz = clock_mhz(properties)
    return rates if mhz is None else rates | {"max_mhz": mhz}


def why_not() -> str | None:
    """Return None if `gpu.cu` can be compiled for this GPU, otherwise the reason."""
    if torch.version.hip:
        return "gpu.cu is written in PTX, which AMD's GPUs do not have"
    if shutil.which("nvcc") is None:
        return "there is no nvcc to compile gpu.cu"
    if torch.cuda.get_device_capability() < (7, 5):
        return "gpu.cu needs a hyperbolic tangent in hardware (compute capability 7.5)"
    return None


def program_rates() -> dict[str, float]:
    """Return the output of `gpu.cu`.

    multiply_adds, ex2, rcp, tanh: results per clock per SM. tanh_scores, (E1) by the hardware's
    tanh, and scores, (E9): elements (i, j, t) per clock per SM, with their relative errors.
    copy_gb: 10^9 bytes per second, read and written together. launch_us: time from one empty kernel
    to the next. wait_us: time from the launch of one until its end is known.

    Raises:
        subprocess.SubprocessError: it does not compile or run.
    """
    major, minor = torch.cuda.get_device_capability()
    command = ["nvcc", *FLAGS, f"-arch=sm_{major}{minor}"]
    program = compiled(SOURCE, command, torch.cuda.get_device_name())
    ran = subprocess.run([program], capture_output=True, text=True, check=True, timeout=SECONDS)
    return json.loads(ran.stdout)


def torch_rates(device: str, copied: int = COPIED) -> dict[str, float]:
    """Return the rates of PyTorch itself.

    torch_copy_gb: as copy_gb, by `Tensor.copy_`. torch_launch_us, torch_wait_us: as launch_us and
    wait_us, for one small addition, the smallest kernel that PyTorch launches.
    """
    source = torch.empty(copied, dtype=torch.uint8, device=device)
    target, one = torch.empty_like(source), torch.ones(1, device=device)

    def wait() -> None:
        one.add_(1)
        if device == "cuda":
            torch.cuda.synchronize()

    copying = _fastest(device, lambda: target.copy_(source), 1)
    return {
        "torch_copy_gb": round(2 * copied / copying / 1e9),
        "torch_launch_us": round(_fastest(device, lambda: one.add_(1), 1000) * 1e6, 2),
        "torch_wait_us": round(_fastest(device, wait, 100) * 1e6, 2),
    }


def _fastest(device: str, call: Call, repeats: int) -> float:
    mean = meter(device).mean
    return min(mean(call, repeats) for _ in range(10))


if __name__ == "__main__":
    description = "Measure the ceilings of the GPU."
    argparse.ArgumentParser(
        "python -m benchmarks.ceiling.gpu", description=description
    ).parse_args()
    sentence = why_not()
    print(sentence or json.dumps(program_rates(), indent=1))
    print(json.dumps(device_rates() | torch_rates("cuda"), indent=1))
