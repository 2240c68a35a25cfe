"""Run NVIDIA's compute-sanitizer over the native CUDA kernels, and read its results.

`benchmarks.gpu` runs each tool over the calls of `tools.sanitizer.calls`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from attnkernels.backends import native
from attnkernels.backends.base import Problem

NAME = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
ERRORS = 9  # the exit status that a tool is told to return for findings
# PyTorch's allocator splits one large block, inside of which no overrun would be noticed.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def find() -> str | None:
    """Return the program, from PATH or the CUDA toolkit."""
    toolkits = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [str(Path(toolkit) / "bin") for toolkit in toolkits if toolkit]
    return shutil.which(NAME) or shutil.which(NAME, path=os.pathsep.join(folders))


def why_not(device: str) -> str | None:
    """Return None if the kernels can run under it, otherwise the reason."""
    if device != "cuda":
        return f"{NAME} watches a GPU, not a {device}"
    sentence = native.why_not(Problem("cuda", torch.float32))
    if sentence is not None:
        return f"the native backend cannot be used: {sentence}"
    if find() is None:
        return f"{NAME} is not found on PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin"
    return None


def command(tool: str) -> list[str]:
    """Return the command."""
    options = ["--tool", tool, "--error-exitcode", str(ERRORS), "--print-limit", "20"]
    return [find() or NAME, *options, sys.executable, "-m", "tools.sanitizer.calls"]


def said(folder: Path, tool: str) -> Path:
    """Return the file with the output of a tool."""
    return folder / f"sanitizer-{tool}.txt"


def outcome(status: int | None, limit: float) -> str:
    """Explain an exit status; None is that of a tool that was stopped."""
    if status is None:
        return f"stopped after {limit:.0f} s"
    return {0: "no errors", ERRORS: "errors"}.get(status, f"ended with status {status}")


def report(folder: Path, outcomes: dict[str, str]) -> str:
    """Return one line per tool, with the end of its output unless it is "no errors"."""
    lines = []
    for tool, found in outcomes.items():
        lines.append(f"  {tool}: {found}")
        path = said(folder, tool)
        if found != outcome(0, 0) and path.exists():
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            lines += [f"    {line}" for line in text.splitlines()[-5:]]
    return "\n".join(["sanitizer", *lines]) if lines else "sanitizer: not run"
