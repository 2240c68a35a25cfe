"""Test how setup.py decides on CUDA kernels: which nvcc, which architectures, and what it prints.

No compiler runs. The nvcc of these tests is a script that gives nvcc's answers.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging import tags
from setuptools import Distribution, Extension
from setuptools.errors import SetupError

import build_cuda
from build_cuda import Toolkit, architectures, find_nvcc, find_toolkit, gencode

SETUP_PY = str(Path(__file__).resolve().parents[2] / "setup.py")
SETUP: dict[str, Any] = runpy.run_path(SETUP_PY)
KNOWN = {75, 80, 86, 87, 89, 90, 100, 110, 120}
ANSWERS = """#!/bin/sh
case "$*" in
*--dryrun*)
    echo '#$ TOP=/kit/bin/..' >&2
    echo '#$ INCLUDES="-I/kit/include"  ' >&2
    echo '#$ SYSTEM_INCLUDES="-isystem" "/kit/include/cccl"' >&2
    echo '#$ LIBRARIES=  "-L/kit/lib/stubs" "-L/kit/lib"' >&2
    echo '#$ g++ -D__CUDACC_VER_MAJOR__=RELEASE -D__CUDACC_VER_MINOR__=0 "-I/kit/other"' >&2 ;;
*--help*) echo '--compress-mode [default,size]' ;;
*--list-gpu-arch*) printf 'compute_75\\ncompute_80\\ncompute_120\\n' ;;
esac
"""


def fake_nvcc(folder: Path, script: str = ANSWERS.replace("RELEASE", "13")) -> str:
    folder.mkdir(parents=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(script)
    nvcc.chmod(0o755)
    return str(nvcc)


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the CUDA of this machine."""
    for name in ("ATTNKERNELS_CUDA", "CUDA_HOME", "CUDA_PATH", "MAX_JOBS", "NVCC_CCBIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(build_cuda, "USUAL_HOME", str(tmp_path / "usual"))
    monkeypatch.setattr(build_cuda, "find_spec", lambda name: None)


def set_up(monkeypatch: pytest.MonkeyPatch, **names: Any) -> None:
    """Replace names of setup.py."""
    for name, value in names.items():
        monkeypatch.setitem(SETUP["cuda_toolkit"].__globals__, name, value)


def test_the_first_nvcc_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_nvcc() is None
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "windows"))
    packages = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(build_cuda, "find_spec", {"nvidia": packages}.get)
    assert find_nvcc() is None
    folders = ["nvidia/cu13/bin", "nvidia/cu14/bin", "usual/bin", "path", "windows/bin", "home/bin"]
    for folder in folders:  # the last of them comes first
        nvcc = fake_nvcc(tmp_path / folder)
        assert find_nvcc() == nvcc


def test_a_file_that_does_not_run_is_no_nvcc(tmp_path: Path) -> None:
    Path(fake_nvcc(tmp_path / "path")).chmod(0o644)
    assert find_nvcc() is None


def test_nvcc_says_where_its_toolkit_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path / "path")
    folders = ["/kit/include"], ["/kit/lib/stubs", "/kit/lib"]
    for cxx in (["g++"], ["ccache", "g++", "-m64"]):
        command = [nvcc, "-ccbin", "g++", "--compress-mode=size"]
        assert find_toolkit(cxx) == Toolkit(command, {75, 80, 120}, *folders)
    monkeypatch.setenv("NVCC_CCBIN", "g++-13")
    assert find_toolkit(["g++"]) == Toolkit([nvcc, "--compress-mode=size"], {75, 80, 120}, *folders)


def test_why_there_is_no_toolkit(tmp_path: Path) -> None:
    assert "no nvcc" in str(find_toolkit(["g++"]))
    nvcc = Path(fake_nvcc(tmp_path / "path", ANSWERS.replace("RELEASE", "11")))
    assert "CUDA 11" in str(find_toolkit(["g++"]))
    nvcc.write_text("#!/bin/sh\necho 'cannot open shared object'")
    assert "cannot open shared object" in str(find_toolkit(["g++"]))
    assert "no C++ compiler" in str(find_toolkit([]))


@pytest.mark.parametrize(
    "listed, names",
    [
        ("", "8.0 8.6 8.9 9.0a 10.0 12.0+PTX"),
        ("8.0;9.0a;12.0+PTX", "8.0 9.0a 12.0+PTX"),
        ("8.0 9.0a, 12.0+PTX;", "8.0 9.0a 12.0+PTX"),
        ("10.0f", "10.0f"),
        ("8.6 8.6", "8.6"),
        ("5.2 7.0 7.5 8.0 9.0+PTX", "8.0 9.0+PTX"),
    ],
)
def test_architectures(monkeypatch: pytest.MonkeyPatch, listed: str, names: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert architectures(KNOWN) == names.split()


def test_an_older_nvcc_leaves_out_what_it_does_not_know() -> None:
    assert architectures(KNOWN - {100, 110, 120}) == ["8.0", "8.6", "8.9", "9.0a+PTX"]


@pytest.mark.parametrize(
    "listed",
    ["Hopper", "80", "sm_80", "8.0+ptx", "8.0-PTX", "9.0b", "10.7", "8.0;12.9", "7.5", "x"],
)
def test_bad_lists_are_errors(monkeypatch: pytest.MonkeyPatch, listed: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    with pytest.raises(SetupError, match="^TORCH_CUDA_ARCH_LIST has "):
        architectures(KNOWN)


@pytest.mark.parametrize(
    "name, flag",
    [
        ("8.0", "arch=compute_80,code=sm_80"),
        ("9.0a", "arch=compute_90a,code=sm_90a"),
        ("12.0+PTX", "arch=compute_120,code=[sm_120,compute_120]"),
    ],
)
def test_options_of_an_architecture(name: str, flag: str) -> None:
    assert gencode(name) == ["-gencode", flag]


TOOLKIT = Toolkit(["nvcc", "-ccbin", "g++"], KNOWN, ["/kit/include"], ["/kit/lib"])


@pytest.mark.parametrize("choice", [None, "", "auto", "1"])
def test_cuda_is_built_where_there_is_nvcc(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], choice: str | None
) -> None:
    set_up(monkeypatch, SANITIZE=False, CUDA_BINDINGS=[Path(__file__)])
    set_up(monkeypatch, find_toolkit=lambda compiler: TOOLKIT)
    if choice is not None:
        monkeypatch.setenv("ATTNKERNELS_CUDA", choice)
    assert SETUP["cuda_toolkit"]() == TOOLKIT
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "8.0 8.6 8.9 9.0a 10.0 12.0+PTX" in said and "nvcc" in said


@pytest.mark.parametrize("choice, sanitize", [("0", False), ("1", True)])
def test_cuda_is_not_built_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, choice: str, sanitize: bool
) -> None:
    set_up(monkeypatch, SANITIZE=sanitize, CUDA_BINDINGS=[Path(__file__)])
    set_up(monkeypatch, find_toolkit=lambda compiler: TOOLKIT)
    monkeypatch.setenv("ATTNKERNELS_CUDA", choice)
    assert SETUP["cuda_toolkit"]() is None


def test_no_nvcc_is_one_line_or_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(monkeypatch, SANITIZE=False, CUDA_BINDINGS=[Path(__file__)], compiler=lambda: ["g++"])
    assert SETUP["cuda_toolkit"]() is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "no nvcc" in said
    monkeypatch.setenv("ATTNKERNELS_CUDA", "1")
    with pytest.raises(SetupError, match="^ATTNKERNELS_CUDA=1 wants CUDA kernels, .* no nvcc"):
        SETUP["cuda_toolkit"]()
    set_up(monkeypatch, CUDA_BINDINGS=[Path("missing")])
    with pytest.raises(SetupError, match="csrc has none"):
        SETUP["cuda_toolkit"]()


def test_another_choice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNKERNELS_CUDA", "yes")
    with pytest.raises(SetupError, match="^ATTNKERNELS_CUDA is 'yes'.* auto .* 0 .* 1 "):
        SETUP["cuda_toolkit"]()


def test_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every kernel comes first, then the binding. Jobs and warnings do not change the objects."""
    for name in ("forward", "backward"):
        source = tmp_path / "csrc/cuda" / f"{name}.cu"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.touch()
    set_up(monkeypatch, ROOT=tmp_path, CUDA_BINDINGS=[tmp_path / "csrc/cuda_ops.cpp"])
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;12.0+PTX")
    made = []
    for jobs, threads, strict in (("1", "1", "0"), ("2", "1", "1"), ("9", "4", "")):
        monkeypatch.setenv("MAX_JOBS", jobs)
        monkeypatch.setenv("ATTNKERNELS_WERROR", strict)
        *kernels, binding = SETUP["cuda_steps"](TOOLKIT)
        made.append([step.command for step in (*kernels, binding)])
        warnings = ["-Werror", "all-warnings"] if strict == "1" else []
        assert all(step.other == ["--threads", threads, *warnings] for step in kernels)
    assert made[0] == made[1] == made[2]
    assert [step.output.name for step in kernels] == ["backward.cu.o", "forward.cu.o"]
    assert kernels[0].command[:3] == TOOLKIT.command
    assert sum(word.startswith("arch=compute_") for word in kernels[0].command) == 2
    assert "-DUSE_CUDA" in binding.command and "-isystem/kit/include" in binding.command


def test_the_runtime_is_linked_whole() -> None:
    """No library of CUDA is needed at run time, and libtorch, with the stream, is kept."""
    libraries = SETUP["cuda_libraries"](TOOLKIT)
    assert "-L/kit/lib" in libraries and "-lcudart_static" in libraries
    assert libraries.index("-Wl,--no-as-needed") + 1 == libraries.index("-ltorch")


@pytest.mark.parametrize("platform, first", [("darwin", "-bundle"), ("linux", "-shared")])
def test_libraries_are_linked_as_the_platform_wants(
    monkeypatch: pytest.MonkeyPatch, platform: str, first: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("ATTNKERNELS_SANITIZE", raising=False)
    setup = runpy.run_path(SETUP_PY)
    command = setup["link_step"]([Path("a.o")], Path("a.so")).command
    assert first in command and ("-s" in command) is (platform == "linux")
    assert ("dynamic_lookup" in command) is (platform == "darwin")


@pytest.mark.parametrize(("python", "abi"), [((3, 10), "cp310"), ((3, 14), "cp314t")])
def test_a_wheel_is_for_every_python(python: tuple[int, int], abi: str) -> None:
    """The free-threaded ones too, which take no abi3; its library has the same name in all."""
    distribution = Distribution({"ext_modules": [Extension("attnkernels._C", sources=[])]})
    command = SETUP["Wheel"](distribution)
    command.ensure_finalized()
    found = tags.Tag(*command.get_tag())
    accepted = {
        *tags.cpython_tags(python, [abi], [found.platform]),
        *tags.compatible_tags(python, "cp" + "".join(map(str, python)), [found.platform]),
    }
    assert found in accepted and found.platform != "any"
    library = SETUP["BuildLibrary"](distribution).get_ext_filename("attnkernels._C")
    assert library == "attnkernels/_C.abi3.so"
