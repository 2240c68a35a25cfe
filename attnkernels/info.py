"""`python -m attnkernels.info`: versions, the build, and what each backend can compute here."""

from __future__ import annotations

import argparse
import platform
import sys

import torch

from . import __version__
from .backends import BACKENDS, native
from .backends.base import Backend, Problem
from .measure.machine import triton_version
from .measure.wording import tolerate_any_encoding

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def versions() -> dict[str, str]:
    """Return the versions and settings of this environment, by name."""
    return {
        "attnkernels": __version__,
        "python": f"{platform.python_version()} ({platform.machine()}, {platform.system()})",
        "torch": torch.__version__,
        "triton": triton_version() or "not installed",
        "torch's instruction set": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        **_accelerator(),
    }


def devices() -> tuple[str, ...]:
    """Return the device types that this torch is built for; ROCm's is also called cuda."""
    return ("cpu", "cuda") if torch.backends.cuda.is_built() else ("cpu",)


def availability(backend: Backend, device_type: str) -> dict[str, list[str]]:
    """Group dtypes by a backend's answer: "available", or the sentence that says why not."""
    answers: dict[str, list[str]] = {}
    for dtype in DTYPES:
        answer = backend.why_not(Problem(device_type, dtype)) or "available"
        answers.setdefault(answer, []).append(str(dtype).removeprefix("torch."))
    return answers


def report() -> str:
    """Return the page that `python -m attnkernels.info` prints."""
    lines = ["versions", *_table(versions()), "", "native build", *_table(native.build_info())]
    for backend in BACKENDS:
        lines += ["", f"backend {backend.NAME}"]
        for device_type in devices():
            for answer, dtypes in availability(backend, device_type).items():
                lines.append(f"  {device_type:<5} {', '.join(dtypes)}: {answer}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the page and return the exit status: 0, or 2 for an unknown argument."""
    tolerate_any_encoding()
    parser = argparse.ArgumentParser(
        prog="python -m attnkernels.info",
        description="Print versions, the build, and what each backend can compute here.",
    )
    parser.parse_args(arguments)
    print(report())
    return 0


def _accelerator() -> dict[str, str]:
    """Return the toolkit that torch is built for and the device that it finds."""
    if not torch.backends.cuda.is_built():
        return {"cuda": "not in this torch"}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device"
    if torch.version.hip is not None:
        return {"rocm": f"{torch.version.hip}, {device}"}
    return {"cuda": f"{torch.version.cuda}, {device}"}


def _table(entries: dict[str, str]) -> list[str]:
    width = max(map(len, entries), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in entries.items()]


if __name__ == "__main__":
    sys.exit(main())
