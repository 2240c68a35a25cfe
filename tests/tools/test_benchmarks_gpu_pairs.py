"""benchmarks.gpu without a GPU: both backends side by side, latencies, compute-sanitizer."""

from __future__ import annotations

import json
import subprocess
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from attnkernels.backends import ON_GPU
from benchmarks.gpu import cases as gpu_cases
from benchmarks.gpu import pairs as gpu_pairs
from benchmarks.gpu import run as gpu
from benchmarks.gpu import summary as gpu_summary
from benchmarks.gpu import sweep as gpu_sweep
from benchmarks.suite import providers, run
from benchmarks.suite.cases import choose
from benchmarks.suite.providers import LATENCY, PROVIDERS
from tools.sanitizer import driver
from tools.sanitizer import tool as gpu_sanitizer

Patch = pytest.MonkeyPatch
CEILING = {
    "sms": 100,
    "max_mhz": 1000.0,
    "torch_copy_gb": 2000,
    "copy_gb": 2500,
    "torch_launch_us": 4.0,
    "launch_us": 2.0,
    "torch_wait_us": 9.0,
    "scores": 30.0,
    "tanh_scores": 15.0,
}
TILES, STEP = [8, 100, 100, 50, 50], [10, 1, 1000, 500, 500]


def row(shape: list[int], direction: str, provider: str, ms: float) -> dict[str, Any]:
    case = "tiles" if shape == TILES else "step"
    measured = {"median_ms": ms, "min_ms": ms, "peak_mib": 1.0}
    named = {"case": case, "direction": direction, "dtype": "float32", "provider": provider}
    return {"shape": shape, **named, **measured}


ROWS = [
    row(TILES, "forward", "eager", 9.0),
    row(TILES, "forward", "triton", 0.08),
    row(TILES, "forward", "native", 0.04),
    row(TILES, "both", "native", 0.1),
    row(STEP, "forward", "triton", 0.04),
    row(STEP, "forward", "native", 0.032),
    row(STEP, LATENCY, "triton", 0.045),
    row(STEP, LATENCY, "native", 0.018),
    row(STEP, "both", "triton", 0.1),
    row(STEP, "both", "native", 0.2),
]


@pytest.fixture
def result(monkeypatch: Patch) -> dict[str, Any]:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    return run.head("cuda", dict(CEILING)) | {"cases": ROWS}


def shown(tables: list[Any]) -> list[list[str]]:
    """Split each line into cells at two or more blanks."""
    console = Console(width=200)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return [line.split() for line in capture.get().splitlines()]


def test_both_backends_are_set_against_each_other(result: dict[str, Any]) -> None:
    page = [" ".join(line) for line in shown(gpu_pairs.tables(result))]
    assert page[0] == "float32: native / triton" and "triton takes" in page[1]
    lines = [line for line in page if line.startswith(("tiles", "step"))]
    # 4e6 elements in 40 µs at 1 GHz on 100 SMs: 1 per clock; 40.1 MB of a step in 32 µs: 1253 GB/s
    assert lines == [
        "tiles forward 40 µs / 80 µs 2.0x 1 / 0.5 3% / 2% – – –",
        "tiles both 100 µs / – – 0.4 / – – – – –",
        "step forward 32 µs / 40 µs 1.2x 1.56 / 1.25 5% / 4% 50% / 40% 2 µs 16x / 20x",
        "step latency 18 µs / 45 µs 2.5x 2.78 / 1.11 9% / 4% 89% / 36% 9 µs 2.0x / 5.0x",
        "step both 200 µs / 100 µs 0.50x 0.25 / 0.5 – – – –",
    ]


def test_the_floor_is_an_empty_kernels_or_pytorchs_smallest(result: dict[str, Any]) -> None:
    assert gpu_pairs.launch_us(result, LATENCY) == 9.0
    result["ceiling"]["wait_us"] = 6.0
    assert gpu_pairs.launch_us(result, LATENCY) == 6.0
    assert gpu_pairs.launch_us(result, "forward") == 2.0
    assert gpu_pairs.launch_us({"ceiling": {}}, "forward") is None


def test_what_the_selection_should_do_is_summed_up(result: dict[str, Any]) -> None:
    said = gpu_pairs.preferences(result).splitlines()
    assert [line.split(":")[0].strip() for line in said[1:]] == [
        "inference, step",
        "inference, tiles",
        "training, step",  # for training with tiles, only one of the two was measured
    ]
    first = ON_GPU["inference", "step"]
    assert "takes 1.2x the time of native (geometric mean of 1, from 1.2x to 1.2x)" in said[1]
    assert said[1].endswith(f"{first.order[0].NAME} is asked first ({first.measured})")


def test_a_cpu_has_no_pairs(result: dict[str, Any]) -> None:
    for other in (result | {"device": "cpu"}, result | {"cases": ROWS[:1]}):
        assert gpu_pairs.tables(other) == [] and gpu_pairs.preferences(other) == ""


def test_the_summary_has_both_and_why_tests_were_skipped(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    cases = result.pop("cases")
    found = {"sanitizer": {"memcheck": "no errors"}, "cases": cases}
    run.write(tmp_path / "results.json", result | found)
    lines = [
        "== native",
        *(f"SKIPPED [2] tests/test_gpu.py:{line}: there is no nvcc: here" for line in (1, 2)),
    ]
    (tmp_path / "tests.txt").write_text("\n".join([*lines, "SKIPPED [1] tests/a.py:3: one GPU"]))
    page = gpu_summary.summary(tmp_path, [])
    for wanted in (
        "float32: native / triton",
        "inference, tiles: triton takes 2.0x",
        "sanitizer\n  memcheck: no errors",
        "skipped, 4 x: there is no nvcc: here",
        "skipped, 1 x: one GPU",
    ):
        assert wanted in page


def test_steps_have_a_latency_on_a_gpu(monkeypatch: Patch, tmp_path: Path) -> None:
    chosen = choose("gpu-step,gpu-square,decoder-step")
    jobs = gpu_cases.jobs_of(chosen, ["float32"], "cuda")
    assert {job.case.name for job in jobs if job.direction == LATENCY} == {
        "gpu-step",
        "decoder-step",
    }
    assert all(job.direction != LATENCY for job in gpu_cases.jobs_of(chosen, ["float32"], "cpu"))

    swept: list[Any] = []
    monkeypatch.setattr(gpu_sweep, "work", lambda jobs, *rest: swept.extend(jobs))
    monkeypatch.setattr(gpu_sweep, "Session", lambda *arguments: None)
    configs = SimpleNamespace(candidates=lambda: {"64x64": None})
    monkeypatch.setattr(gpu_sweep, "import_module", lambda name: configs)
    run.write(tmp_path / "results.json", run.head("cpu", {}))
    gpu_sweep.sweep(tmp_path, "cuda", 0.0, 1.0)
    assert swept and all(job.direction != LATENCY for job in swept)


def test_a_latency_waits_for_the_device(monkeypatch: Patch) -> None:
    (case,) = choose("tiny-2")
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    call = providers.prepare(PROVIDERS[0], case, LATENCY, torch.float32)
    assert call().shape == (2, 3, 8) and len(waits) == 1


def test_who_has_no_latency() -> None:
    (case,) = choose("tiny-2")
    eager, compiled = PROVIDERS[:2]
    for provider, device, why in ((eager, "cpu", "done when it"), (compiled, "cuda", "its code")):
        sentence = providers.why_not(provider, case, LATENCY, torch.float32, device)
        assert why in (sentence or "")


def test_both_of_ours_are_measured_on_a_gpu() -> None:
    assert set(gpu_pairs.OURS) <= set(gpu_cases.PEERS) & {each.name for each in PROVIDERS}


TOOL = """#!/bin/sh
echo "$*"
case $2 in
memcheck) exit 0 ;;
racecheck) echo "========= RACECHECK SUMMARY: 3 hazards"; exit 9 ;;
initcheck) exec sleep 60 ;;
*) echo "no such tool"; exit 3 ;;
esac
"""


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: Patch) -> Path:
    """Make a program of that name, found only in CUDA_HOME, and let the driver be built."""
    program = tmp_path / "cuda" / "bin" / gpu_sanitizer.NAME
    program.parent.mkdir(parents=True)
    program.write_text(TOOL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(gpu_sanitizer, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(gpu_sanitizer, "architecture", lambda: "9.0")
    return program


def stage(tmp_path: Path, monkeypatch: Patch, device: str = "cuda", built: int = 0) -> gpu.Run:
    """Run that part alone, for three seconds."""
    options = Namespace(out=tmp_path, device=device)
    everything = gpu.Run(options, time.time(), 3.0, run.head("cpu", {}), [])
    start = gpu._run

    def unless_it_builds(command: list[str], *rest: Any) -> int | None:
        return built if "tools.sanitizer.driver" in command else start(command, *rest)

    monkeypatch.setattr(gpu, "_run", unless_it_builds)
    gpu._sanitizer(everything)
    return everything


def test_each_tool_says_what_it_found(tmp_path: Path, sanitizer: Path, monkeypatch: Patch) -> None:
    assert gpu_sanitizer.find() == str(sanitizer) and gpu_sanitizer.why_not("cuda") is None
    everything = stage(tmp_path, monkeypatch)
    saved = json.loads((tmp_path / "results.json").read_text())["sanitizer"]
    assert saved == everything.result["sanitizer"] and list(saved) == list(gpu_sanitizer.TOOLS)
    assert saved["memcheck"] == "no errors" and saved["racecheck"] == "errors"
    assert saved["initcheck"].startswith("stopped after")
    said = (tmp_path / "sanitizer.txt").read_text()
    assert said.startswith("== memcheck\n--tool memcheck --error-exitcode 9 ")
    assert said.splitlines()[1].endswith("/9.0/driver")
    page = gpu_summary.summary(tmp_path, [])
    assert "  memcheck: no errors\n  racecheck: errors\n" in page
    assert "    ========= RACECHECK SUMMARY: 3 hazards\n" in page


def test_a_driver_that_is_not_built_is_a_note(
    tmp_path: Path, sanitizer: Path, monkeypatch: Patch
) -> None:
    assert "the driver was not built" in stage(tmp_path, monkeypatch, built=1).notes[0]


def test_an_exit_status_of_the_program_is_no_finding() -> None:
    assert gpu_sanitizer.outcome(3, 1.0) == "ended with status 3"


def test_without_the_program_or_a_compiler_there_is_a_note(
    tmp_path: Path, sanitizer: Path, monkeypatch: Patch
) -> None:
    assert stage(tmp_path, monkeypatch, "cpu").notes == [
        "sanitizer: compute-sanitizer watches a GPU, not a cpu"
    ]
    with monkeypatch.context() as without:
        without.setattr(gpu_sanitizer, "find_nvcc", lambda: None)
        assert "there is no nvcc" in stage(tmp_path, monkeypatch).notes[0]
    monkeypatch.setattr(gpu_sanitizer, "find", lambda: None)
    missing = stage(tmp_path, monkeypatch)
    assert "is not found on PATH" in missing.notes[0] and "sanitizer" not in missing.result
    assert "sanitizer: not run" in gpu_summary.summary(tmp_path, missing.notes)


@pytest.mark.slow
def test_the_driver_runs_every_kernel() -> None:
    program = driver.build(None)
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.endswith("128 calls, 0 wrong\n"), ran.stdout
