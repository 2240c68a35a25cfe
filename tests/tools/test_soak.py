"""Test the soak: cases have every option and find faults, a run continues where it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnkernels.backends import native
from attnkernels.backends.base import Problem
from tools.soak import calls, command, memory, run
from tools.soak.case import LIMITS, VALUES, Case
from tools.soak.draw import draw
from tools.soak.progress import Progress
from tools.soak.tensors import Tensors

HERE = "reference" if native.why_not(Problem("cpu", torch.float32)) else "native"
Call = Callable[..., Any]


def test_cases_have_every_value_of_every_option() -> None:
    seen: dict[str, set[str]] = {option: set() for option in VALUES}
    for number in range(2000):
        for option, values in draw(0, number).tags().items():
            seen[option] |= set(values)
    assert seen == {option: set(values) for option, values in VALUES.items()}


@pytest.mark.parametrize("backend", LIMITS)
def test_cases_keep_the_limits_of_their_backend(backend: str) -> None:
    limits = LIMITS[backend]
    for number in range(300):
        case = draw(1, number, backend)
        n, m, d, dv = case.sizes
        assert case.dtype in limits.dtypes and case.callers <= limits.callers
        assert prod(case.lead) * n * m * (d + dv) <= limits.units[-1]


def test_the_float64_reference_sums_no_equal_terms() -> None:
    """They round alike, by more than the budget expects of an oracle."""
    seen = 0
    for number in range(1000):
        case = draw(2, number)
        n, m, d, _ = case.sizes
        if case.dtype == "float64":
            seen += max(n, m, d) > 4
            layouts = {name: x.layout for name, x in case.operands.items()}
            assert n <= 4 or layouts["query"] != "rows expanded"
            assert m <= 4 or layouts["key"] != "rows expanded"
            assert d <= 4 or layouts["weight"] != "columns expanded"
    assert seen > 50


def test_a_case_depends_on_its_seed_and_number_alone() -> None:
    for number in range(40):
        case = draw(3, number)
        assert case == draw(3, number) and case != draw(4, number)
        first, second = (Tensors(case) for _ in range(2))
        for a, b in zip(tensors_of(first), tensors_of(second), strict=True):
            assert a.stride() == b.stride() and torch.equal(a.isnan(), b.isnan())
            assert torch.equal(a.nan_to_num(), b.nan_to_num())


def tensors_of(tensors: Tensors) -> list[Tensor]:
    every = (*tensors.inputs.values(), *tensors.options.values())
    return [x for x in every if isinstance(x, Tensor)]


def test_only_the_nan_differs_from_a_case_without_it() -> None:
    case = find(lambda case: case.nan == "query" and case.padding == "numbers")
    poisoned, clean = Tensors(case), Tensors(replace(case, nan="none"))
    for a, b in zip(tensors_of(poisoned), tensors_of(clean), strict=True):
        assert torch.equal(torch.where(a.isnan(), b, a), b)
    assert poisoned.inputs["query"].isnan().any()


def find(wanted: Callable[[Case], bool]) -> Case:
    """Return the first case of this backend that is small and wanted."""
    drawn = (draw(0, number, HERE) for number in range(10_000))
    return next(
        case
        for case in drawn
        if wanted(case) and all(case.sizes) and all(case.lead) and case.size == 1.0
    )


def test_real_cases_pass(tmp_path: Path) -> None:
    progress, interrupted = run.soak(HERE, seed=0, cases=40, folder=tmp_path)
    assert not interrupted and progress.next == progress.every.cases == 40
    assert progress.failures == [] and 0 < progress.every.ratio <= 1
    assert not progress.running.exists() and not (tmp_path / "failures.jsonl").exists()


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], Any]) -> None:
    """Let the call under test of `additive_attention` pass its outputs through `fault`."""
    tested = calls._NAIVE if HERE == "reference" else calls._PUBLIC
    attention = tested["attention"]
    monkeypatch.setitem(tested, "attention", lambda *x, **options: fault(attention(*x, **options)))


def first_of(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """Return a function that changes the context of the outputs."""

    def of_outputs(outputs: Any) -> Any:
        if isinstance(outputs, tuple):
            return (change(outputs[0]), *outputs[1:])
        return change(outputs)

    return of_outputs


class _Steeper(torch.autograd.Function):
    """The identity, with a gradient off by 1%."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 1.01


def in_a_thread(x: Tensor) -> Tensor:
    """Change the last bits, but only off the main thread."""
    return x if threading.current_thread() is threading.main_thread() else x * (1 + 2**-20)


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Case], bool], str]] = {
    "a result": (lambda x: x * 1.01, lambda case: case.nan == "none", "context has an error"),
    "a gradient": (
        _Steeper.apply,
        lambda case: "context" in case.through and case.operands["value"].wants_gradient,
        "gradient of value has an error",
    ),
    "a NaN": (
        lambda x: x.nan_to_num(0.0),
        lambda case: case.nan == "weight" and case.mask == "none" and case.lengths is None,
        "the output lacks NaN",
    ),
    "a thread": (in_a_thread, lambda case: case.callers > 1, "several threads call at once"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    change, wanted, message = FAULTS[name]
    case = find(lambda case: case.call == "attention" and case.dtype == "float32" and wanted(case))
    assert run.try_case(case)[1] is None
    plant(monkeypatch, first_of(change))
    ratios, found = run.try_case(case)
    assert ratios is None and found is not None and message in found


def test_a_failure_says_how_to_run_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, first_of(lambda x: x * 1.01))
    progress, _ = run.soak(HERE, seed=0, cases=20, folder=tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [x["case"] for x in lines] == progress.failures and progress.failures
    again = f"python -m tools.soak --backend {HERE} --seed 0 --case {progress.failures[0]}"
    assert lines[0]["command"] == again and f"FAILED {again}: " in capsys.readouterr().out
    arguments = again.split()[3:]
    assert command.main([*arguments, "--here"]) == 1
    assert f"FAILED: {lines[0]['message']}" in capsys.readouterr().out
    assert progress.every.failures == len(lines) and "failures: " in progress.summary()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the numbers of the cases that are run, without running them."""
    numbers: list[int] = []

    def check(case: Case) -> dict[str, float]:
        numbers.append(case.number)
        if case.number == 6 and len(numbers) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return {"context": case.number / 100}

    monkeypatch.setattr(run, "check", check)
    return numbers


def test_a_run_continues_where_it_was_interrupted(tmp_path: Path, ran: list[int]) -> None:
    progress, interrupted = run.soak(HERE, seed=0, cases=10, folder=tmp_path)
    assert interrupted and progress.next == 7
    progress, interrupted = run.soak(HERE, seed=0, cases=10, folder=tmp_path)
    assert not interrupted and ran == list(range(10))
    assert progress.every.cases == 10 and progress.every.case == 9
    assert "0.09 in case 9, context" in progress.summary()
    run.soak(HERE, seed=1, cases=2, folder=tmp_path)  # another seed begins anew
    assert ran[10:] == [0, 1]


def test_a_case_that_ends_the_process_is_a_failure(tmp_path: Path, ran: list[int]) -> None:
    progress, _ = run.soak(HERE, seed=0, cases=4, folder=tmp_path)
    progress.running.write_text("0 5")
    progress, _ = run.soak(HERE, seed=0, cases=6, folder=tmp_path)
    assert progress.failures == [5] and ran == [0, 1, 2, 3, 4]
    assert "the process ended during this case" in (tmp_path / "failures.jsonl").read_text()


def test_the_process_of_a_backend_is_told_of_an_interrupt(ctrl_c: None) -> None:
    script = "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(130));"
    script += "print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert command._wait(process) == command.INTERRUPTED


def test_a_backend_goes_on_after_its_process_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    statuses = iter([-signal.SIGSEGV, 1])
    monkeypatch.setattr(command.subprocess, "Popen", lambda args, env: started.append(args))
    monkeypatch.setattr(command, "_wait", lambda process: next(statuses))
    assert command.main(["--backend", "native", "--restart"]) == 1
    first, second = started
    assert "--restart" in first and second == [each for each in first if each != "--restart"]


def test_growth_is_seen() -> None:
    kept: list[bytes] = []
    assert memory.growth_of(lambda: kept.append(b"kept" * 3000), 400) > memory.NOISE
    assert memory.growth_of(lambda: b"lost" * 3000, 400) < memory.NOISE


def test_every_function_is_called_for_growth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "_resident", lambda: 0)
    assert memory.find_growth(HERE, 4) == 0
    said = capsys.readouterr().out
    names = ["additive_attention", "prepare_keys and attend", "additive_scores"]
    names += ["additive_attention_varlen", "prepare_edges and additive_attention_sparse"]
    for name in names:
        assert f"stays {HERE} {name}: +0 KiB in 4 calls" in said


def test_a_backend_has_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNKERNELS_LIBRARY", "built already")
    assert command.environment("emulated")["ATTNKERNELS_LIBRARY"] == "built already"
    assert command.environment("interpreted")["TRITON_INTERPRET"] == "1"
    assert command.environment("native")["OMP_WAIT_POLICY"] == "passive"


def test_progress_of_another_seed_is_not_continued(tmp_path: Path) -> None:
    progress = Progress(tmp_path, HERE, 0)
    progress.record(draw(0, 0, HERE), {"context": 0.5}, None)
    progress.save()
    assert Progress.load(tmp_path, HERE, 0) == progress
    assert Progress.load(tmp_path, HERE, 1).next == 0
