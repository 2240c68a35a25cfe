"""Build `driver.cu` and the kernels of csrc/cuda as a program without torch.

    python -m tools.sanitizer.driver [ARCHITECTURE]

ARCHITECTURE is one of a GPU, such as 9.0; without it, the emulator runs the kernels on a CPU.
"""

from __future__ import annotations

import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("driver.cu")
FLAGS = ["-c", "-O3", "-lineinfo", "-std=c++20", f"-I{ROOT / 'csrc'}"]


def build(architecture: str | None) -> Path:
    """Return the program for an architecture such as "9.0", or for a CPU by the emulator.

    Raises:
        RuntimeError: there is no nvcc.
        Exception: it does not compile (setuptools' CompileError).
    """
    setup: dict[str, Any] = runpy.run_path(str(ROOT / "setup.py"))
    folder = program(architecture).parent
    if architecture is None:
        library = runpy.run_path(str(ROOT / "tests/emulator/library.py"))
        linker = setup["compiler"]()
        steps = [library["step"](SOURCE, folder)]  # of the others, the library has the objects
        emulator = library["FOLDER"] / "emulator.cpp"
        steps += [library["step"](each) for each in (*library["kernels"](), emulator)]
    else:
        toolkit = setup["find_toolkit"](setup["compiler"]() or [])
        if isinstance(toolkit, str):
            raise RuntimeError(toolkit)
        linker = toolkit.command
        flags = [*FLAGS, *setup["gencode"](architecture)]
        steps = []
        for each in [*sorted((ROOT / "csrc/cuda").glob("*.cu")), SOURCE]:
            output = folder / f"{each.name}.o"
            command = [*linker, *flags, "-MD", "-MF", f"{output}.d", str(each)]
            steps.append(setup["Step"](output, [*command, "-o", str(output)], [each]))
    with ThreadPoolExecutor(setup["jobs"]()) as pool:
        list(pool.map(setup["run"], steps))
    made, objects = program(architecture), [step.output for step in steps]
    command = [*linker, *map(str, objects), "-o", str(made)]
    setup["run"](setup["Step"](made, command, objects))
    return made


def program(architecture: str | None) -> Path:
    """Return where the program is, once it is built."""
    return ROOT / "build" / "sanitizer" / (architecture or "emulated") / "driver"


if __name__ == "__main__":
    print(build(sys.argv[1] if len(sys.argv) > 1 else None))
