"""The compact battery on each instruction set of this machine, forced by ATEN_CPU_CAPABILITY."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BATTERY = [
    str(Path(__file__).with_name(name)) for name in ("test_native.py", "test_native_aligned.py")
]
ASK = "import torch; print(torch.backends.cpu.get_cpu_capability())"


@pytest.mark.parametrize("isa", ["default", "avx2", "avx512"])
def test_battery(fused: str, isa: str) -> None:
    if fused != "native":
        pytest.skip("only the native backend has code for each instruction set of a CPU")
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": isa}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    if run("-c", ASK).stdout.strip().lower() != isa:
        pytest.skip(f"this machine does not run {isa}")
    options = ("-q", "-x", "-p", "no:cacheprovider", "--require", fused, "-k", fused)
    done = run("-m", "pytest", *options, *BATTERY)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
