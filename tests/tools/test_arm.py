"""tools.arm, without its compiler and its emulator: what it says when one is missing."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from packaging import tags
from setuptools import Distribution, Extension

from tools import arm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fakes programs by shell scripts")


def fake(folder: Path, name: str, says: str = "") -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder on PATH, with all that is wanted but QEMU."""
    for name in (arm.COMPILER, "apt-get", "dpkg-deb"):
        fake(tmp_path, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(arm, "QEMU", "qemu-aarch64")
    return tmp_path


@pytest.mark.parametrize(
    "version, refused", [("7.2.18 (Debian)", True), ("10.0.2", False), ("11.1.3", False)]
)
def test_an_old_qemu_is_refused(programs: Path, version: str, refused: bool) -> None:
    fake(programs, "qemu-aarch64", f"qemu-aarch64 version {version}")
    wanted = "make arm wants QEMU 10 or newer, and qemu-aarch64 is version 7.2.18"
    assert arm.why_not() == (wanted if refused else None)


@pytest.mark.parametrize("name", [arm.COMPILER, "qemu-aarch64", "apt-get"])
def test_a_missing_program_is_named(programs: Path, name: str) -> None:
    fake(programs, "qemu-aarch64", "qemu-aarch64 version 10.0.2")
    (programs / name).unlink()
    found = arm.why_not()
    assert found is not None and found.startswith(f"make arm wants {name}, which is not on PATH")


def test_the_tests_import_what_is_installed_for_them() -> None:
    """Neither the tests nor the conftest.py beside them want what arm.MODULES leaves out."""
    code = """if True:
        import sys
        import pytest
        from tools import arm
        sys.modules |= dict.fromkeys(["pybind11", "setuptools"])
        raise SystemExit(pytest.main(["--collect-only", "-q", *arm.TESTS]))
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=arm.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_command_fails_with_the_sentence() -> None:
    command = [
        sys.executable,
        "-c",
        "from tools import arm; arm.QEMU = 'none'; raise SystemExit(arm.main())",
    ]
    done = subprocess.run(command, cwd=arm.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("make arm wants ") and done.stderr.count("\n") == 1


def test_the_tests_exist() -> None:
    assert all((arm.ROOT / name).exists() for name in arm.TESTS)


def test_a_cross_build_is_for_its_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-aarch64")
    monkeypatch.delenv("ATTNKERNELS_SANITIZE", raising=False)
    setup = runpy.run_path(str(arm.ROOT / "setup.py"))
    assert setup["ISAS"] == {"DEFAULT": []} and setup["OBJECTS"] == arm.LIBRARY.parent
    distribution = Distribution({"ext_modules": [Extension("attnkernels._C", sources=[])]})
    command = setup["Wheel"](distribution)
    command.ensure_finalized()
    assert tags.Tag(*command.get_tag()) == tags.Tag("py3", "none", "linux_aarch64")
