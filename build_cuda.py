"""Find the CUDA compiler and the architectures to compile for, on behalf of setup.py.

Environment: CUDA_HOME, CUDA_PATH, TORCH_CUDA_ARCH_LIST, and nvcc's own NVCC_CCBIN.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Container
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from setuptools.errors import SetupError

# Code for an architecture runs on later ones with the same major number; code for an "a" runs on
# that one alone. The last is compiled to PTX as well, which the driver compiles for newer GPUs.
ARCHITECTURES = ["8.0", "8.6", "8.9", "9.0a", "10.0", "12.0"]
OLDEST = 80  # 8.0, which the kernels need
USUAL_HOME = "/usr/local/cuda"  # the usual place of toolkits, often not on PATH


class Toolkit(NamedTuple):
    """The command of nvcc, the architectures that it knows (80 is 8.0), and its folders."""

    command: list[str]
    known: set[int]
    headers: list[str]
    libraries: list[str]


def find_nvcc() -> str | None:
    """Return nvcc below CUDA_HOME or CUDA_PATH, on PATH, in USUAL_HOME or in pip's packages."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [os.path.join(home, "bin") for home in homes if home]
    folders += [os.environ.get("PATH", os.defpath), os.path.join(USUAL_HOME, "bin")]
    packages = find_spec("nvidia")  # a folder of packages; the toolkit of CUDA 13 is in cu13
    for path in (packages and packages.submodule_search_locations) or ():
        folders += sorted(map(str, Path(path).glob("cu*/bin")), reverse=True)
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def find_toolkit(compiler: list[str]) -> Toolkit | str:
    """Return the toolkit, with `compiler` for the host's C++, or a sentence that says why not."""
    nvcc = find_nvcc()
    if not compiler:
        return "there is no C++ compiler"
    if nvcc is None:
        return "there is no nvcc (docs/install.md says where it is sought, and how pip gets one)"
    command = [nvcc]
    if not os.environ.get("NVCC_CCBIN"):  # it takes one program: g++ of "ccache g++ -m64"
        command += ["-ccbin", [word for word in compiler if not word.startswith("-")][-1]]

    def ask(*options: str) -> str:
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        return done.stdout + done.stderr

    # nvcc may be a link or a script outside its toolkit, so ask it for the folders
    plan = ask("--dryrun", "-x", "cu", "-c", os.devnull, "-o", "none.o")
    release = re.search(r"__CUDACC_VER_MAJOR__=(\d+)", plan)
    if release is None:
        return f"{nvcc} does not work: {plan.strip()}"
    if int(release[1]) < 12:
        return f"{nvcc} is that of CUDA {release[1]}, and C++20 needs 12 or newer"
    headers, libraries = (
        re.findall(r'"-[IL]([^"]+)"', " ".join(re.findall(rf"^#\$ {name}=(.*)", plan, re.M)))
        for name in ("INCLUDES", "LIBRARIES")
    )
    if "--compress-mode" in ask("--help"):  # a fifth of the default size
        command.append("--compress-mode=size")
    known = set(map(int, re.findall(r"compute_(\d+)", ask("--list-gpu-arch"))))
    return Toolkit(command, known, headers, libraries)


def architectures(known: Container[int]) -> list[str]:
    """Return TORCH_CUDA_ARCH_LIST, or those of ARCHITECTURES that nvcc knows: "8.0", "12.0+PTX".

    Raises:
        SetupError: TORCH_CUDA_ARCH_LIST has an entry that nvcc does not know, or none from 8.0 on.
    """

    def capability(name: str) -> int:
        return int(re.sub(r"\D", "", name))

    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    names = list(dict.fromkeys(re.findall(r"[^;,\s]+", listed)))
    for name in names:
        entry = re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name)
        if entry is None or (capability(name) >= OLDEST and capability(name) not in known):
            raise SetupError(
                f"TORCH_CUDA_ARCH_LIST has {name!r}, which nvcc does not know;"
                " entries are like those of '8.0;9.0a;12.0+PTX'"
            )
    if names:  # a list made for other packages may name GPUs too old for the kernels
        names = [name for name in names if capability(name) >= OLDEST]
        if not names:
            raise SetupError("TORCH_CUDA_ARCH_LIST has nothing from 8.0 on, which kernels need")
        return names
    names = [name for name in ARCHITECTURES if capability(name) in known]
    return [*names[:-1], f"{names[-1]}+PTX"]


def gencode(architecture: str) -> list[str]:
    """Return nvcc's options for an architecture: its code, and PTX if the name has +PTX."""
    name, ptx, _ = architecture.replace(".", "").partition("+")
    code = f"[sm_{name},compute_{name}]" if ptx else f"sm_{name}"
    return ["-gencode", f"arch=compute_{name},code={code}"]
