"""Build the CPU library for 64-bit ARM with a cross compiler, and run its tests under QEMU.

`python -m tools.arm` makes dist/*-linux_aarch64.whl and runs the tests twice: on a processor with
NEON alone and on one with SVE, too. Names of tests, as pytest takes them, replace the usual ones.
torch and the tools of the tests come from pip, Python from Debian's packages, both for aarch64 and
into build/arm. It wants Linux, aarch64-linux-gnu-g++, apt-get, and QEMU 10 or newer; the variable
QEMU names another qemu-aarch64.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARM = ROOT / "build/arm"
SITE, SYSTEM, DEBIAN = ARM / "site", ARM / "system", ARM / "debian"
LIBRARY = ROOT / "build/linux-aarch64/_C.abi3.so"
COMPILER = "aarch64-linux-gnu-g++"
QEMU = os.environ.get("QEMU", "qemu-aarch64")
OLDEST_QEMU = 10

TORCH = "torch==2.10.0"  # PyPI's wheel for aarch64 is a CPU build: it needs no CUDA to be imported
MODULES = (  # what torch and the tests import; pip would choose by the machine it runs on
    *("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx<3.7", "numpy", "sympy"),
    *("typing_extensions", "hypothesis", "iniconfig", "packaging", "pluggy", "pygments", "pytest"),
    "sortedcontainers",
)
RELEASE, PYTHON = "bookworm", "3.11"
PACKAGES = (  # Debian's Python, and the libraries that it and torch load
    *(f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib"),
    *("libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libbz2-1.0", "liblzma5"),
    *("libcrypt1", "libdb5.3", "libexpat1", "libffi8", "libncursesw6", "libnsl2", "libreadline8"),
    *("libsqlite3-0", "libssl3", "libtinfo6", "libtirpc3", "libuuid1"),
)
PROCESSORS = {"NEON": "max,sve=off", "SVE": "max,sve-default-vector-length=32"}
TESTS = tuple(
    f"tests/{folder}/test_{name}.py"
    for folder, names in {
        "ops": "attention masks scores nan zeros memory_object step_part varlen dropout window jvp"
        " gradcheck func sparse saturated ranges",
        "nn": "attention rnn",
        "backends": "native",
    }.items()
    for name in names.split()
)


def why_not() -> str | None:
    """Return None if the tools are there, or a sentence that says what is missing."""
    for command in (COMPILER, QEMU, "apt-get", "dpkg-deb"):
        if not shutil.which(command):
            return f"make arm wants {command}, which is not on PATH (on Debian: docs/install.md)"
    shown = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\S*", shown)
    if not found or int(found[1]) < OLDEST_QEMU:
        version = found[0] if found else "a version that it does not print"
        return f"make arm wants QEMU {OLDEST_QEMU} or newer, and {QEMU} is {version}"
    return None


def run(command: Sequence[str | Path], **variables: str | Path) -> int:
    """Run a command in the root of the project; return its exit status."""
    given = {name: str(x) for name, x in variables.items()}
    return subprocess.run([*map(str, command)], cwd=ROOT, env=os.environ | given).returncode


def must(command: Sequence[str | Path], **variables: str | Path) -> None:
    """Run a command, and exit with its status if that is not 0."""
    if status := run(command, **variables):
        sys.exit(status)


def install_modules() -> None:
    """Install torch and the tools of the tests for aarch64 into SITE."""
    platforms = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    must(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", SITE),
            *("--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"),
            *(f"--abi={abi}" for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")),
            *(f"--platform={name}_aarch64" for name in platforms),
            *(TORCH, *MODULES),
        ]
    )


def install_python() -> None:
    """Unpack Debian's Python for aarch64 into SYSTEM, without a trace outside of build/arm."""
    for folder in ("lists/partial", "cache/archives/partial", "packages"):
        (DEBIAN / folder).mkdir(parents=True, exist_ok=True)
    sources = DEBIAN / "sources.list"
    sources.write_text(f"deb http://deb.debian.org/debian {RELEASE} main\n")
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::Cache": DEBIAN / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": DEBIAN / "lists",
        "Dir::State::status": "/dev/null",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={x}" for name, x in options.items())]
    must([*apt, "update"])
    folder = DEBIAN / "packages"
    if subprocess.run([*apt, "download", *PACKAGES], cwd=folder).returncode:
        sys.exit("apt-get cannot download Debian's Python for arm64: see above")
    for package in sorted(folder.glob("*.deb")):
        must(["dpkg-deb", "-x", package, SYSTEM])


def build() -> None:
    """Make the library and the wheel."""
    must(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", "dist"],
        CXX=COMPILER,
        ATTNKERNELS_CUDA="0",
        PYTHONPATH=SITE,  # the torch to build against
        _PYTHON_HOST_PLATFORM="linux-aarch64",
    )


def test(processor: str, tests: Sequence[str]) -> int:
    """Run tests on one of PROCESSORS; return pytest's exit status."""
    print(f"{processor} ({PROCESSORS[processor]})", flush=True)
    emulator = [QEMU, "-L", str(SYSTEM), "-cpu", PROCESSORS[processor]]
    python = ARM / f"python-{processor}"
    emulated = shlex.join([*emulator, f"{SYSTEM}/usr/bin/python{PYTHON}"])
    python.write_text(f'#!/bin/sh\nexec {emulated} "$@"\n')
    python.chmod(0o755)
    # Tests start Python, too, and the system cannot start that of another processor by itself.
    program = f"import sys, pytest; sys.executable = {str(python)!r}; sys.exit(pytest.main())"
    return run(
        [python, "-c", program, "-q", "-p", "no:cacheprovider", "--require=native", *tests],
        PYTHONPATH=f"{SITE}:{ROOT}",
        PYTHONDONTWRITEBYTECODE="1",
        ATTNKERNELS_LIBRARY=LIBRARY,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.arm", description=__doc__)
    parser.add_argument("tests", nargs="*", default=TESTS, help="as pytest takes them")
    parser.add_argument("--processor", choices=PROCESSORS, action="append", help="instead of both")
    given = parser.parse_args(arguments)
    if missing := why_not():
        print(missing, file=sys.stderr)
        return 1
    if not (SITE / "torch").exists():
        install_modules()
    if not (SYSTEM / "usr/bin").exists():
        install_python()
    build()
    return max([test(name, given.tests) for name in given.processor or PROCESSORS])


if __name__ == "__main__":
    sys.exit(main())
