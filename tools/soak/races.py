"""Build the CPU kernels with ThreadSanitizer, and run them on several threads without Python."""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("races.cpp")
FOUND = 66  # ThreadSanitizer's exit status for races
FLAGS = ["-O1", "-g1", "-fsanitize=thread"]


def build(kernels: Path | None = None) -> Path:
    """Return the program, whose kernels are those of this processor, or of the source given."""
    import torch

    setup: dict[str, Any] = runpy.run_path(str(ROOT / "setup.py"))
    isa = torch.backends.cpu.get_cpu_capability()
    isa = isa if isa in setup["ISAS"] else "DEFAULT"
    folder = setup["OBJECTS"] / "races"
    flags = [*setup["isa_flags"](isa), *FLAGS]
    steps = [
        setup["compile_step"](source, folder / f"{source.stem}.o", flags)
        for source in (SOURCE, kernels or ROOT / "csrc/cpu/kernels.cpp")
    ]
    for step in steps:
        setup["run"](step)
    program, objects = folder / "races", [step.output for step in steps]
    libraries = str(setup["torch_root"]() / "lib")
    command = [*setup["compiler"](), *FLAGS, *map(str, objects)]
    command += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10"]
    setup["run"](setup["Step"](program, [*command, "-o", str(program)], objects))
    return program


def find_races() -> int:
    """Build and run the program; return 0 if there is no race and all callers agree."""
    program = build()
    # where addresses are drawn from more bits than ThreadSanitizer expects, it stops at once
    command = ["setarch", "-R", str(program)] if sys.platform == "linux" else [str(program)]
    options = f"exitcode={FOUND} " + os.environ.get("TSAN_OPTIONS", "")
    status = subprocess.run(command, env={**os.environ, "TSAN_OPTIONS": options}).returncode
    if status:
        print(f"{shlex.join(command)} ended with status {status}", flush=True)
    return int(status != 0)
