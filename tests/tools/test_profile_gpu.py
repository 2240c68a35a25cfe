"""The profile on a GPU: its differences from the CPU, on a real GPU and on a simulated one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.profile import MIB, refusal, run

from attnkernels.measure import device, machine, memory
from attnkernels.profile import command as profile
from attnkernels.profile import sweep
from attnkernels.profile.naive import naive_attention, naive_bytes


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 0.0)


class Imaginary(device.Cpu):
    """A GPU whose kernels run on this CPU."""

    name = "Imaginary 9000, 4 SMs at up to 1,000 MHz"
    warms_up = True
    clocks_per_second: float | None = 4e9
    ceilings = {"magic": 16.0}

    def __init__(self) -> None:
        self.calls: list[str] = []

    def facts(self) -> dict[str, Any]:
        return {"gpu": "Imaginary 9000", "sms": 4, "versions": machine.versions()}

    def measure(self, call: Any) -> memory.Measured:
        self.calls.append("measured")
        return super().measure(call)


def run_imagined(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gpu: Imaginary, *flags: str
) -> dict[str, Any]:
    monkeypatch.setattr(profile, "find", {"cuda": gpu}.__getitem__)
    status, result = run(folder, "--device", "cuda", "--lengths", "16,48", *flags)
    assert status == 0
    return result


def test_a_gpu_has_its_clocks_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_imagined(tmp_path, monkeypatch, Imaginary())
    assert result["gpu"] == "Imaginary 9000" and result["sms"] == 4 and "cpu" not in result
    for row in result["rows"]:
        assert row["elements_per_clock"] == pytest.approx(row["g_elements_per_s"] / 4)
    printed = " ".join(capsys.readouterr().out.split())  # a long line is broken
    assert "Imaginary 9000, 4 SMs at up to 1,000 MHz, torch" in printed
    assert "/clock" in printed and "at most 16 with magic" in printed


def test_ceilings_are_those_of_a_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_imagined(tmp_path, monkeypatch, Imaginary(), "--backward")
    printed = capsys.readouterr().out
    assert "/clock" in printed and "magic" not in printed


def test_a_gpu_of_unknown_clock_has_no_such_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = Imaginary()
    gpu.clocks_per_second = None
    result = run_imagined(tmp_path, monkeypatch, gpu)
    assert all(row["elements_per_clock"] is None for row in result["rows"])
    assert "/clock" not in capsys.readouterr().out


def test_a_gpu_s_first_call_of_a_length_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Imaginary()

    def noted(*tensors: torch.Tensor) -> torch.Tensor:
        gpu.calls.append(f"naive {tensors[0].shape[1]}")
        return naive_attention(*tensors)

    monkeypatch.setattr(sweep, "naive_attention", noted)
    run_imagined(tmp_path, monkeypatch, gpu)
    for length in (16, 48):
        first = gpu.calls.index(f"naive {length}")
        assert gpu.calls[first + 1 : first + 3] == ["measured", f"naive {length}"]


def test_inputs_that_do_not_fit_on_a_gpu_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = Imaginary()
    gpu.type = "cuda"
    monkeypatch.setattr(gpu, "free_memory", lambda: MIB)
    monkeypatch.setattr(profile, "find", {"cuda": gpu}.__getitem__)
    said = refusal(capsys, "--device", "cuda", "--lengths", "64,4096").splitlines()[-1]
    assert "4,096 characters at width 256 need 12 MiB on cuda, and 1 MiB are free" in said


class Event:
    """A torch.cuda.Event in whose time every call takes 2 ms."""

    def __init__(self, enable_timing: bool) -> None:
        self.recorded = not enable_timing

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        assert self.recorded and end.recorded
        return 2.0


class Driver:
    """The answers of torch.cuda to `Cuda`: an H100 with 5 MiB in use, 7 MiB cached, 60 MiB free."""

    def __init__(self) -> None:
        self.now = self.peak = 5 * MIB
        self.properties = SimpleNamespace(
            name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, uuid="12-34"
        )

    def take(self, mebibytes: int) -> None:
        self.peak = max(self.peak, self.now + mebibytes * MIB)

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def reset() -> None:
            self.peak = self.now

        answers: dict[str, Any] = {
            "is_available": lambda: True,
            "current_device": lambda: 0,
            "get_device_properties": lambda index: self.properties,
            "mem_get_info": lambda: (60 * MIB, 80 * MIB),
            "memory_reserved": lambda: 12 * MIB,
            "memory_allocated": lambda: self.now,
            "max_memory_allocated": lambda: self.peak,
            "reset_peak_memory_stats": reset,
            "synchronize": lambda: None,
            "Event": Event,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    found.patch(monkeypatch)
    return found


def test_a_cuda_device_measures_by_events_and_by_its_allocator(driver: Driver) -> None:
    driver.properties.clock_rate = 1_980_000
    driver.take(50)
    gpu = device.find("cuda")
    assert gpu.name == "NVIDIA H100, 132 SMs at up to 1,980 MHz" and gpu.type == "cuda"
    assert gpu.clocks_per_second == pytest.approx(132 * 1980e6)
    assert set(gpu.ceilings.values()) == {16, 36}
    assert gpu.free_memory() == 67 * MIB
    assert gpu.measure(lambda: driver.take(3)) == (2e-3, 3 * MIB)
    assert gpu.seconds(lambda: None) == 2e-3
    facts = gpu.facts()
    assert (facts["gpu"], facts["sms"], facts["sm_clock_mhz"]) == ("NVIDIA H100", 132, 1980.0)
    assert facts["versions"]["cuda"] == "13.0" and "rocm" not in facts["versions"]
    json.dumps(facts)


def test_another_gpu_has_no_ceilings_that_were_derived_for_this_one(driver: Driver) -> None:
    driver.properties.major = 8
    assert not device.find("cuda").ceilings


def nvidia_smi(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> list[list[str]]:
    """Record the commands that are run from now on; they print `answer`."""
    commands: list[list[str]] = []

    def respond(command: list[str], **options: Any) -> Any:
        commands.append(command)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(subprocess, "run", respond)
    return commands


def test_nvidia_smi_is_asked_for_a_clock_that_torch_does_not_know(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = nvidia_smi(monkeypatch, "1755\n")
    assert device.find("cuda").clocks_per_second == pytest.approx(132 * 1755e6)
    assert len(commands) == 1 and "--id=GPU-12-34" in commands[0]


@pytest.mark.parametrize(
    "answer", ["[N/A]\n", FileNotFoundError(), subprocess.CalledProcessError(6, "nvidia-smi")]
)
def test_a_clock_that_nobody_knows(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, answer: str | Exception
) -> None:
    nvidia_smi(monkeypatch, answer)
    gpu = device.find("cuda")
    assert gpu.clocks_per_second is None and "clock unknown" in gpu.name


def test_no_gpu_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built, wanted in ((False, "is built without CUDA"), (True, "finds no GPU here")):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda built=built: built)
        last = refusal(capsys, "--device", "cuda").splitlines()[-1]
        assert "error: --device cuda: torch" in last and wanted in last


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_profile_of_a_real_gpu(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(False)  # deterministic cuBLAS needs this variable
    status, result = run(tmp_path, "--device", "cuda", "--dim", "64", "--lengths", "64,256")
    assert status == 0 and result["device"] == "cuda" and result["sms"] > 0
    for row in result["rows"]:
        assert row["ms"] > 0 and row["peak_mib"] > 0
    naive = [row["peak_mib"] for row in result["rows"] if row["method"] == "naive"]
    assert naive[-1] == pytest.approx(naive_bytes(256 * 256, 64, 4, False) / MIB, rel=0.1)
