"""A busy machine is noticed and said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.profile import run

from attnkernels.measure import busy
from attnkernels.profile import command, sweep
from benchmarks.suite import run as suite

SPIN = "print('', flush=True)\nwhile True: pass"


@pytest.mark.skipif(not busy.CPU_TIMES.exists(), reason="the system has no /proc/stat")
def test_other_processes_are_counted_and_this_one_is_not() -> None:
    others = busy.Others()
    began = os.times().user
    while os.times().user - began < 0.5:  # on a busy machine, this takes longer
        pass
    cpus = len(os.sched_getaffinity(0))
    alone = others.cpus()
    assert alone is not None and alone < cpus
    spinning = [
        subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE)
        for _ in range(cpus + 1)
    ]
    try:
        for process in spinning:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
        others = busy.Others()
        time.sleep(1.0)
        taken = others.cpus()
    finally:
        for process in spinning:
            process.kill()
            process.communicate()
    assert taken is not None and 0.8 * cpus < taken < 1.2 * cpus


def test_a_system_that_counts_nothing_has_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "CPU_TIMES", tmp_path / "none")
    assert busy.Others().cpus() is None


def test_only_the_cpus_of_this_process_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = tmp_path / "stat"
    mine = min(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {mine})
    monkeypatch.setattr(busy, "CPU_TIMES", times)

    def line(cpu: str, busy: int) -> str:
        return f"cpu{cpu} {busy} {busy} {busy} 77 88 {busy} {busy} {busy} 0 0\n"

    times.write_text(line("", 5) + line(str(mine), 10) + line(str(mine + 1), 10))
    others = busy.Others()
    others._began -= 10.0
    tick = os.sysconf("SC_CLK_TCK")
    times.write_text(line("", 5) + line(str(mine), 10 + tick) + line(str(mine + 1), 10**6))
    assert others.cpus() == pytest.approx(0.6, abs=0.05)  # six columns for one second of ten


@pytest.mark.parametrize(
    "others, spreads, wanted",
    [
        (None, [], None),
        (0.05, [1.1] * 9, None),
        (1.7, [1.01], "other processes took 1.7 of 4 CPUs. "),
        (None, [1.1, 1.1, 1.1, 57.2], None),
        (None, [1.1, 1.1, 1.4, 57.2], "medians are up to 57.2 times their minimum. "),
        (1.7, [2.0], "took 1.7 of 4 CPUs and medians are up to 2.0 times their minimum. "),
    ],
)
def test_either_sign_is_enough(
    monkeypatch: pytest.MonkeyPatch, others: float | None, spreads: list[float], wanted: str | None
) -> None:
    monkeypatch.setattr(busy, "_cpus", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    said = busy.sentence(others, spreads)
    assert said is None if wanted is None else said is not None and wanted in said


def test_cpus_that_the_threads_leave_free_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_cpus", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert busy.sentence(12.0, []) is None and busy.sentence(12.5, []) is not None


class Loaded:
    """Others that took as many CPUs as there are."""

    def cpus(self) -> float:
        return float(busy._cpus())


class Quiet:
    def cpus(self) -> float:
        return 0.0


@pytest.mark.parametrize("others", [Loaded, Quiet])
def test_the_profile_says_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    others: type[Any],
) -> None:
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 0.0)
    monkeypatch.setattr(command, "Others", others)
    _, result = run(tmp_path, "--lengths", "16")
    said = "The machine was busy: other processes took" in capsys.readouterr().out
    assert said == (others is Loaded) and result["other_cpus"] == others().cpus()


@pytest.mark.parametrize("others", [Loaded, Quiet])
def test_the_suite_says_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    others: type[Any],
) -> None:
    row = {"case": "square", "shape": [1, 2, 3, 4, 4], "direction": "forward", "dtype": "float32"}
    row |= {"provider": "eager", "median_ms": 1.0, "min_ms": 1.0, "peak_mib": 1.0}
    monkeypatch.setattr(suite, "Others", others)
    monkeypatch.setattr(suite, "ceiling", dict)
    monkeypatch.setattr(suite, "_measure", lambda *arguments: iter([[row]]))
    path = tmp_path / "r.json"
    assert suite.main(["--cases", "square", "--json", str(path), "--plot", "none"]) == 0
    assert ("The machine was busy" in capsys.readouterr().out) == (others is Loaded)
    assert json.loads(path.read_text())["cases"] == [row]


def test_rows_of_few_repeats_have_no_spread() -> None:
    rows = [sweep.Row(64, "fused", 2.0, 1.0, repeats) for repeats in (1, 2, 3)]
    assert sweep.spreads([*rows, sweep.Row(64, "naive")]) == [2.0]
