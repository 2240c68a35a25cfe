"""The stages of benchmarks.gpu without a GPU: what they write, their time, and their failures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ceiling import cpu as ceiling
from benchmarks.ceiling import gpu as gpu_ceiling
from benchmarks.gpu import cases as gpu_cases
from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import run as gpu
from benchmarks.gpu import summary as gpu_summary
from benchmarks.suite import run
from tools.sanitizer import tool as gpu_sanitizer

RATES = {"lanes": 16, "multiply_add_g": 100.0, "scores_g": 20.0, "gradients_g": 10.0}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Make a folder with the head of a result, as the first part leaves it."""
    run.write(tmp_path / "results.json", run.head("cpu", dict(RATES)))
    return tmp_path


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu.cuda, "why_not", lambda: "there is no GPU")
    assert gpu.main(["--out", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no GPU" in said and not (tmp_path / "none").exists()


FILES = {"environment.txt", "results.json", "absent.json", "tests.txt", "sanitizer.txt"}
FILES |= {"sweep.json", "sweep-absent.json", "summary.txt"}


@pytest.mark.slow
def test_stages_a_and_b_run_to_their_end_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ceiling, "ceiling", lambda: dict(RATES))
    monkeypatch.setattr(gpu, "TESTS", ["-c", "import sys; print('FAILED', sys.argv[2])"])
    options = ["--out", str(tmp_path), "--device", "cpu", "--seconds", "0.01"]
    options += ["--cases", "tiny-2", "--providers", "eager,native", "--commit", "abc"]
    assert gpu.main([*options, "--stages", "A"]) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    assert set(result) == {*run.head("cpu", {}), "check"} and result["commit"] == "abc"
    assert result["ceiling"] == {} and len(result["cases"]) == 8
    assert all(error <= 1 for error in result["check"]["native"].values())
    assert len(result["check"]["native"]) == 8
    assert "not checked: it runs on cuda tensors" in result["check"]["triton"]["a step, float32"]
    assert "backend reference" in (tmp_path / "environment.txt").read_text()
    page = (tmp_path / "summary.txt").read_text()
    assert "2x3x5x8" in page and "native: 8 of 8 calls are right, at most 0." in page
    assert "tests: not run" in page
    assert "tiny-2 both bfloat16: native" in capfd.readouterr().out

    assert gpu.main([*options, "--stages", "B"]) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["ceiling"] == RATES and len(result["cases"]) == 8
    page = (tmp_path / "summary.txt").read_text()
    for name, other in (("native", "triton"), ("triton", "native")):
        assert f"tests of {name}: they did not end\n  FAILED {other}" in page
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"environment.txt", "results.json", "absent.json", "tests.txt", "summary.txt"}

    with pytest.raises(SystemExit):
        gpu.main([*options, "--commit", "def"])
    assert "commit abc, now def: take another --out" in capfd.readouterr().err


def test_there_are_at_most_eight_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts write what they can, and their processes nothing else."""
    said = (gpu.__doc__ or "").split("eight files:")[1]
    assert {word.strip(",") for word in said.split() if word.count(".") == 1} - {"DIR."} >= FILES
    assert len(FILES) == 8
    monkeypatch.setattr(gpu, "_run", lambda command, limit, sink=None: 0)
    monkeypatch.setattr(ceiling, "ceiling", dict)
    monkeypatch.setattr(gpu_sanitizer, "why_not", lambda device: None)
    monkeypatch.setattr(gpu_sanitizer, "architecture", lambda: "9.0")
    options = ["--out", str(tmp_path), "--device", "cpu", "--stages", "A,B,C", "--sweep"]
    assert gpu.main(options) == 0
    assert {path.name for path in tmp_path.iterdir()} <= FILES


@pytest.mark.parametrize("stage", gpu.STAGES)
@pytest.mark.parametrize("budget", [inf, 100.0])
def test_a_stage_ends_in_its_time(
    out: Path, monkeypatch: pytest.MonkeyPatch, stage: str, budget: float
) -> None:
    """Every process is stopped at its limit, and takes all of the time to save its results."""
    clock = [1000.0]

    def deaf(command: list[str], limit: float, sink: Any = None) -> None:
        clock[0] += max(limit, 0) + gpu.GRACE

    monkeypatch.setattr(gpu.time, "time", lambda: clock[0])
    monkeypatch.setattr(gpu, "_run", deaf)
    monkeypatch.setattr(ceiling, "ceiling", dict)
    monkeypatch.setattr(gpu_sanitizer, "why_not", lambda device: None)
    monkeypatch.setattr(gpu_sanitizer, "architecture", lambda: "9.0")
    options = gpu._parser().parse_args(["--out", str(out), "--device", "cpu", "--sweep"])
    limit = min(budget, gpu.STAGES[stage].limit)
    assert not gpu._stage(stage, gpu.Run(options, clock[0], limit, run.head("cpu", {}), []))
    assert clock[0] - 1000 <= limit
    assert gpu.STAGES["A"].limit <= 240 and gpu.STAGES["B"].limit <= 300


def test_a_part_that_fails_does_not_end_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: gpu.Run) -> None:
        raise RuntimeError("out of order")

    seen: list[str] = []
    parts = {"check": broken, "tests": broken, "cases": lambda run: seen.append("cases")}
    monkeypatch.setattr(gpu, "STAGES", {"A": gpu.Stage(9, parts), "B": gpu.Stage(9, {})})
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--skip", "tests"]) == 0
    assert seen == ["cases"]
    page = (tmp_path / "summary.txt").read_text()
    assert "check: RuntimeError: out of order" in page and "tests: Runtime" not in page


def test_unknown_stages_and_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["--stages", "A,Z"], "no stage Z; there are A, B, C"),
        (["--skip", "tests,teas"], "no part teas; there are environment, check"),
    ):
        with pytest.raises(SystemExit):
            gpu.main(["--out", str(tmp_path), "--device", "cpu", *options])
        assert said in capsys.readouterr().err


def test_a_check_that_fails_has_a_status_and_a_sentence(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that there was no time for is no failure."""

    def check(name: str, until: float) -> int:
        head = json.loads((out / "results.json").read_text()) | {"check": {}}
        run.write(out / "results.json", head | {"cases": head.pop("cases")})
        options = ["--out", str(out), "--backend", name, "--device", "cpu"]
        return gpu_check.main([*options, "--until", str(until)])

    def found() -> list[Any]:
        return list(json.loads((out / "results.json").read_text())["check"]["reference"].values())

    assert check("reference", -1) == 0
    assert set(found()) == {"not checked: the time was up"}
    assert "reference: 0 of 8 calls are right\n    not checked: " in gpu_summary.summary(out, [])

    def broken(*inputs: Any, **options: Any) -> Any:
        assert not torch.are_deterministic_algorithms_enabled()
        raise AssertionError("lse has an error")

    monkeypatch.setattr(gpu_check, "check_attention", broken)
    assert check("reference", inf) == 1 and set(found()) == {"AssertionError: lse has an error"}


def test_a_fault_is_followed_by_another_process_while_that_leads_on(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def process(command: list[str], limit: float) -> int:
        started.append(command)
        if len(started) < 3:
            (out / "absent.json").write_text(json.dumps(len(started)))
        return gpu_cases.FAULTED

    monkeypatch.setattr(gpu, "_run", process)
    options = Namespace(out=out, device="cpu", seconds=1.0)
    everything = gpu.Run(options, time.time(), 100, run.head("cpu", {}), [])
    gpu._work(everything, "benchmarks.gpu.cases", time.time() + 100)
    assert len(started) == 3 and len(everything.notes) == 3


def test_a_process_is_stopped_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    for code in ("import time; time.sleep(60)", deaf):
        assert gpu._run([sys.executable, "-c", code], 0.5) is None
    assert gpu._run([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3


SAID = """== native
FAILED tests/test_gpu.py::test_this - so
===== 1 failed, 8 passed, 2 skipped in 31.20s (0:00:31) =====
== triton
tests/test_gpu.py::test_that
"""


def test_the_summary_tells_of_tests_and_absences(out: Path) -> None:
    assert "tests: not run" in gpu_summary.summary(out, [])
    (out / "tests.txt").write_text(SAID)
    row = {"case": "c", "direction": "both", "dtype": "float32", "provider": "p", "why": "it is so"}
    (out / "absent.json").write_text(json.dumps([row, row | {"case": "d"}]))
    page = gpu_summary.summary(out, ["this went wrong"])
    assert page.startswith("this went wrong\n") and page == (out / "summary.txt").read_text()
    assert "tests of native: 1 failed, 8 passed, 2 skipped\n  FAILED tests/test_gpu.py" in page
    assert "tests of triton: they did not end\n  tests/test_gpu.py::test_that" in page
    assert "p, 2 x: it is so" in page


def test_a_ceiling_that_does_not_compile_is_a_note(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> dict[str, float]:
        raise subprocess.CalledProcessError(1, "nvcc", stderr="no such architecture\n")

    monkeypatch.setattr(gpu_ceiling, "device_rates", lambda: {"sms": 132, "max_mhz": 1980.0})
    monkeypatch.setattr(gpu_ceiling, "torch_rates", lambda device: {"torch_copy_gb": 1})
    monkeypatch.setattr(gpu_ceiling, "why_not", lambda: None)
    monkeypatch.setattr(gpu_ceiling, "program_rates", broken)
    options = Namespace(out=out, device="cuda")
    everything = gpu.Run(options, time.time(), 100, run.head("cpu", {}), [])
    gpu._ceilings(everything)
    saved = json.loads((out / "results.json").read_text())["ceiling"]
    assert saved == {"sms": 132, "max_mhz": 1980.0, "torch_copy_gb": 1}
    assert everything.notes == ["gpu.cu: no such architecture"]
