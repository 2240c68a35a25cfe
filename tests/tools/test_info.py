"""`python -m attnkernels.info`, and the package without its compiled library."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import attnkernels
from attnkernels import info
from attnkernels.backends import BACKENDS, native
from attnkernels.backends.base import Problem
from attnkernels.measure import machine

USES_IT = """
import torch
from attnkernels import additive_attention
inputs = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 2), torch.randn(4)
print(additive_attention(*inputs).shape)
try:
    additive_attention(*inputs, backend="native")
except ValueError as error:
    print(error)
"""


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_versions_backends_and_reasons() -> None:
    page = run("-m", "attnkernels.info")
    assert attnkernels.__version__ in page and torch.__version__ in page
    for backend in BACKENDS:
        assert backend.NAME in page
        for device in info.devices():
            assert (backend.why_not(Problem(device, torch.float32)) or "available") in page


def test_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        info.main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: python -m attnkernels.info" in printed and "native build" not in printed


@pytest.mark.parametrize("argument", ["--nope", "native"])
def test_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        info.main([argument])
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and not printed.out
    assert f"unrecognized arguments: {argument}" in printed.err


def answers(page: str, backend: str) -> list[str]:
    """Return the lines of one backend."""
    lines = page.split(f"backend {backend}\n")[1].split("\n\n")[0]
    return lines.splitlines()


def test_asks_for_the_devices_torch_is_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for built, kinds in ((False, {"cpu"}), (True, {"cpu", "cuda"})):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda built=built: built)
        page = info.report()
        for backend in BACKENDS:
            assert {line.split()[0] for line in answers(page, backend.NAME)} == kinds
        assert ("not in this torch" in page) is not built
    assert native.why_not(Problem("cuda", torch.float64)) in "".join(answers(page, "native"))


@pytest.mark.parametrize(
    "version, found, wanted",
    [
        ({"cuda": "13.0", "hip": None}, True, {"cuda": "13.0, Imaginary 9000"}),
        ({"cuda": "13.0", "hip": None}, False, {"cuda": "13.0, no device"}),
        ({"cuda": None, "hip": "7.1"}, True, {"rocm": "7.1, Imaginary 9000"}),
    ],
)
def test_names_the_toolkit_and_the_device(
    monkeypatch: pytest.MonkeyPatch,
    version: dict[str, str | None],
    found: bool,
    wanted: dict[str, str],
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Imaginary 9000")
    monkeypatch.setattr(torch, "version", SimpleNamespace(**version))
    assert wanted.items() <= info.versions().items()


def test_triton_has_a_version_or_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, list[str]] = {}
    monkeypatch.setattr(machine, "packages_distributions", lambda: names)
    assert info.versions()["triton"] == "not installed"
    names["triton"] = ["triton-of-another-name"]
    monkeypatch.setattr(machine, "version", {"triton-of-another-name": "3.7.1"}.__getitem__)
    assert info.versions()["triton"] == "3.7.1"


@pytest.mark.parametrize("isa", ["default", "avx2", "avx512"])
def test_names_the_instruction_set(fused: str, isa: str) -> None:
    """The kernels use the instruction set that torch was told to use."""
    page = run("-m", "attnkernels.info", ATEN_CPU_CAPABILITY=isa)
    if isa.upper() not in page:
        pytest.skip(f"this machine does not run {isa}")
    assert page.count(isa.upper()) >= 2


def test_without_the_library_the_reference_works() -> None:
    """Without a compiler there is one sentence, and only if native is requested."""
    nowhere = os.path.join(os.path.dirname(__file__), "nowhere.so")
    shape, *sentence = run("-c", USES_IT, ATTNKERNELS_LIBRARY=nowhere).splitlines()
    assert shape == "torch.Size([2, 3, 2])"
    assert "native" in sentence[0] and "nowhere.so" in sentence[0]
    assert "missing" in run("-m", "attnkernels.info", ATTNKERNELS_LIBRARY=nowhere)
