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
ISAS = ["default", "avx2", "avx512"]  # a machine that has one has those before it


@pytest.mark.parametrize("isa", ISAS)
def test_battery(fused: str, isa: str) -> None:
    if fused != "native":
        pytest.skip("only the native backend has code for each instruction set of a CPU")
    own = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    forced = {**own, "ATEN_CPU_CAPABILITY": isa}

    def run(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    # torch believes the variable, even where the processor has no such instructions
    best, taken = (
        run("-c", ASK, environment=each).stdout.strip().lower() for each in (own, forced)
    )
    if taken != isa or best not in ISAS[ISAS.index(isa) :]:
        pytest.skip(f"this machine does not run {isa}")
    options = ("-q", "-x", "-p", "no:cacheprovider", "--require", fused, "-k", fused)
    done = run("-m", "pytest", *options, *BATTERY, environment=forced)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
