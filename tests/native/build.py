"""Build tests/native/maths.cpp, the inner functions of the CPU kernels, for an instruction set.

The compiler, its flags and the check for changed files are those of setup.py.
"""

from pathlib import Path
from types import ModuleType

import torch
from helpers.extensions import HEADERS, SETUP, SUFFIX, imported

SOURCE = Path(__file__).with_name("maths.cpp")


def isas() -> list[str]:
    """Return the instruction sets that kernels are compiled for and this processor supports."""
    names = list(SETUP["ISAS"])
    best = torch.backends.cpu.get_cpu_capability()
    return names[: names.index(best) + 1] if best in names else names[:1]


def load(isa: str) -> ModuleType:
    """Return the module `maths` built for `isa`, one of isas(). Raise CompileError if it fails."""
    folder = SETUP["OBJECTS"] / "tests" / isa
    flags = [*SETUP["isa_flags"](isa), *HEADERS]
    step = SETUP["compile_step"](SOURCE, folder / "maths.o", flags)
    return imported(f"{isa}.maths", SETUP["build"]([step], folder / f"maths{SUFFIX}"))
