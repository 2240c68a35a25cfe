"""Run NVIDIA's compute-sanitizer over the native CUDA kernels, and read its results.

`benchmarks.gpu` runs each tool over the program of `tools.sanitizer.driver`.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch

from build_cuda import find_nvcc

NAME = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
ERRORS = 9  # the exit status that a tool is told to return for findings


def find() -> str | None:
    """Return the program, from PATH or the CUDA toolkit."""
    toolkits = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [str(Path(toolkit) / "bin") for toolkit in toolkits if toolkit]
    return shutil.which(NAME) or shutil.which(NAME, path=os.pathsep.join(folders))


def why_not(device: str) -> str | None:
    """Return None if the kernels can run under it, otherwise the reason."""
    if device != "cuda":
        return f"{NAME} watches a GPU, not a {device}"
    if find_nvcc() is None:
        return "there is no nvcc to build the kernels without torch"
    if find() is None:
        return f"{NAME} is not found on PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin"
    return None


def architecture() -> str:
    """Return that of the current GPU, such as "9.0"."""
    return ".".join(map(str, torch.cuda.get_device_capability()))


def command(tool: str, program: Path) -> list[str]:
    """Return the command that runs `program` under a tool."""
    options = ["--tool", tool, "--error-exitcode", str(ERRORS), "--print-limit", "20"]
    return [find() or NAME, *options, str(program)]


def said(folder: Path) -> Path:
    """Return the file with the output of the tools, each below a line "== TOOL"."""
    return folder / "sanitizer.txt"


def outcome(status: int | None, limit: float) -> str:
    """Explain an exit status; None is that of a tool that was stopped."""
    if status is None:
        return f"stopped after {limit:.0f} s"
    return {0: "no errors", ERRORS: "errors"}.get(status, f"ended with status {status}")


def report(folder: Path, outcomes: dict[str, str]) -> str:
    """Return one line per tool, with the end of its output unless it is "no errors"."""
    path, lines = said(folder), []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    parts = re.split(r"^== (\w+)$", text, flags=re.M)
    outputs = dict(zip(parts[1::2], parts[2::2], strict=True))
    for tool, found in outcomes.items():
        lines.append(f"  {tool}: {found}")
        if found != outcome(0, 0):
            lines += [f"    {line}" for line in outputs.get(tool, "").strip().splitlines()[-5:]]
    return "\n".join(["sanitizer", *lines]) if lines else "sanitizer: not run"
