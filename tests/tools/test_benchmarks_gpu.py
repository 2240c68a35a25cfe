"""The measurements of benchmarks.gpu without a GPU: on a CPU at tiny sizes, and their failures."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnkernels.measure import cuda
from benchmarks.ceiling import cpu as ceiling
from benchmarks.ceiling import gpu as gpu_ceiling
from benchmarks.gpu import cases as gpu_cases
from benchmarks.gpu import environment as gpu_environment
from benchmarks.gpu import summary as gpu_summary
from benchmarks.gpu import sweep as gpu_sweep
from benchmarks.gpu import truth as gpu_truth
from benchmarks.suite import meters, providers, run
from benchmarks.suite.absent import LOST
from benchmarks.suite.cases import Case, Inputs, choose, inputs
from benchmarks.suite.providers import PROVIDERS, Built, Provider

EAGER = PROVIDERS[0]
RATES = {"lanes": 16, "multiply_add_g": 100.0, "scores_g": 20.0, "gradients_g": 10.0}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Make a folder with the head of a result, as the first stages leave it."""
    run.write(tmp_path / "results.json", run.head("cpu", dict(RATES)))
    return tmp_path


def measure(out: Path, *arguments: str, names: str = "eager", seconds: float = 300) -> int:
    """Do the work of one process in this one."""
    options = ["--out", str(out), "--device", "cpu", "--until", str(time.time() + seconds)]
    options += ["--cases", "tiny-2", "--providers", names, "--seconds", "0.01"]
    return gpu_cases.main([*options, "--dtypes", "float32", *arguments])


def measured(out: Path, name: str = "results.json") -> list[tuple[str, str, str]]:
    rows = json.loads((out / name).read_text())["cases"]
    return [(row["case"], row["direction"], row["provider"]) for row in rows]


def reasons(out: Path) -> dict[tuple[str, str], str]:
    rows = json.loads((out / "absent.json").read_text())
    return {(row["direction"], row["provider"]): row["why"] for row in rows}


def provide(monkeypatch: pytest.MonkeyPatch, build: Any, **options: Any) -> None:
    """Make a provider called native that builds calls by `build`."""
    made = Provider("native", lambda problem: None, build, **options)
    monkeypatch.setattr(providers, "PROVIDERS", (EAGER, made))


def test_the_most_important_come_first() -> None:
    jobs = gpu_cases.jobs_of(choose(gpu_cases.LIST), ["float32", "bfloat16"], "cuda")
    assert list(dict.fromkeys(job.case.name for job in jobs))[:5] == list(gpu_cases.FIRST)
    assert [job.dtype for job in jobs] == sorted((job.dtype for job in jobs), reverse=True)
    assert len(set(jobs)) == len(jobs) and any(job.direction == "graph" for job in jobs)
    on_cpu = gpu_cases.jobs_of(choose(gpu_cases.LIST), ["float32"], "cpu")
    assert {job.direction for job in on_cpu} == {"forward", "both"}


def test_it_goes_on_where_it_stopped(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, once = gpu_cases.interleaved, []

    def one(*arguments: Any) -> Any:
        if once:
            raise KeyboardInterrupt
        once.append(1)
        return whole(*arguments)

    monkeypatch.setattr(gpu_cases, "interleaved", one)
    assert measure(out) == run.INTERRUPTED
    assert measured(out) == [("tiny-2", "forward", "eager")] and reasons(out) == {}
    monkeypatch.setattr(gpu_cases, "interleaved", whole)
    first = (out / "results.json").read_text()
    assert measure(out) == 0
    assert measured(out) == [("tiny-2", pass_, "eager") for pass_ in ("forward", "both")]
    assert (out / "results.json").read_text().startswith(first[: first.index("peak_mib")])
    monkeypatch.setattr(gpu_cases, "interleaved", None)
    assert measure(out) == 0


def test_it_stops_when_the_time_is_up(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(out, seconds=-1) == 0
    assert measured(out) == [] and "The time is up: 2 of 2 are left" in capsys.readouterr().out


def test_who_fails_is_noted_and_the_others_are_measured(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that fails at first, or later."""
    calls: list[int] = []

    def build(case: Case, given: Inputs) -> Built:
        context, leaves = EAGER.build(case, given)

        def late() -> torch.Tensor:
            calls.append(1)
            if not given.query.requires_grad or len(calls) > 3:
                raise torch.OutOfMemoryError("too much\nof it")
            return context()

        return late, leaves

    provide(monkeypatch, build)
    assert measure(out, names="eager,native") == 0
    assert measured(out) == [("tiny-2", pass_, "eager") for pass_ in ("forward", "both")]
    why = "OutOfMemoryError: too much"
    assert reasons(out) == {("forward", "native"): why, ("both", "native"): why}
    assert len(calls) == 4


def test_who_takes_the_process_along_is_not_run_again(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(case: Case, given: Inputs) -> Built:
        raise SystemExit("as a kernel that faults")

    provide(monkeypatch, build)
    for _ in range(2):  # one process each: forward, both
        with pytest.raises(SystemExit):
            measure(out, names="eager,native")
    assert measure(out, names="eager,native") == 0
    assert reasons(out) == {("forward", "native"): LOST, ("both", "native"): LOST}
    assert measured(out) == [("tiny-2", pass_, "eager") for pass_ in ("forward", "both")]


@pytest.mark.parametrize("calls", [1, 4])
def test_a_wrong_result_is_no_measurement(
    out: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """A call that is wrong at first, or only after some calls."""
    made: list[int] = []

    def build(case: Case, given: Inputs) -> Built:
        context, leaves = EAGER.build(case, given)
        made.clear()

        def late() -> torch.Tensor:
            made.append(1)
            return context() * (1.01 if len(made) >= calls else 1)

        return late, leaves

    provide(monkeypatch, build)
    assert measure(out, names="eager,native") == 0
    assert measured(out) == [("tiny-2", pass_, "eager") for pass_ in ("forward", "both")]
    for direction, name in (("forward", "the context"), ("both", "the gradient of ")):
        why = reasons(out)[direction, "native"]
        assert f"AssertionError: {name}" in why and " has an error of " in why
        assert why.startswith("after it was timed: ") == (calls > 1)


def test_a_large_case_is_checked_in_its_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = choose("tiny-4")
    monkeypatch.setattr(gpu_truth, "ALL", 0)
    monkeypatch.setattr(gpu_truth, "AT_ONCE", 3 * 9 * 33)
    truth = gpu_truth.Truth(case, torch.float32, "cpu")
    given = inputs(case, torch.float32, True)
    context, leaves = EAGER.build(case, given)
    grads = torch.autograd.grad(context(), leaves, given.arriving)
    truth.check("both", grads)
    wrong = context().detach()
    wrong[0, 3:] = torch.nan  # not looked at
    truth.check("forward", wrong)
    wrong[0, 2] += 1
    with pytest.raises(AssertionError, match="the context"):
        truth.check("forward", wrong)


def test_a_fault_of_the_device_asks_for_another_process(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that failed is blamed, not those that were ready."""

    def failed(session: gpu_cases.Session, attempt: Any, error: BaseException) -> None:
        session.absent.note(gpu_cases.sentence(error), attempt)
        raise gpu_cases.Faulted

    def build(case: Case, given: Inputs) -> Built:
        raise RuntimeError("illegal memory access")

    provide(monkeypatch, build)
    monkeypatch.setattr(gpu_cases.Session, "_failed", failed)
    assert measure(out, names="eager,native") == gpu_cases.FAULTED
    assert reasons(out) == {("forward", "native"): "RuntimeError: illegal memory access"}


def test_code_is_not_made_when_others_need_the_time(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide(monkeypatch, EAGER.build, generates=True)
    assert measure(out, names="eager,native", seconds=gpu_cases.GENERATING / 2) == 0
    assert {provider for _, _, provider in measured(out)} == {"eager"}
    assert "making its code takes some 30 s" in reasons(out)["both", "native"]


def test_a_sweep_measures_the_candidates(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    candidates: dict[str, Callable[[], None]] = {
        name: lambda name=name: used.append(name) for name in ("64x64", "32x32")
    }
    offered = SimpleNamespace(candidates=lambda: candidates)
    monkeypatch.setitem(sys.modules, gpu_sweep.CONFIGS, offered)
    triton = Provider("triton", lambda problem: None, EAGER.build)
    monkeypatch.setattr(gpu_sweep, "PROVIDERS", (EAGER, triton))
    monkeypatch.setattr(gpu_sweep, "CASES", "tiny-2")
    options = ["--out", str(out), "--device", "cpu", "--seconds", "0.01"]
    assert gpu_sweep.main([*options, "--until", str(time.time() + 100)]) == 0
    found = measured(out, "sweep.json")
    wanted = [("tiny-2", pass_, name) for pass_ in ("forward", "both") for name in candidates]
    assert found == wanted and set(used) == set(candidates) and measured(out) == []
    assert "tiny-2 both float32: " in gpu_summary.summary(out, [])


class Event:
    """A torch.cuda.Event of a device whose clock advances one millisecond per call."""

    now = 0

    def __init__(self, enable_timing: bool) -> None:
        self.at = -1

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        assert self.at >= 0

    def elapsed_time(self, later: Event) -> float:
        return later.at - self.at


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate a GPU as far as possible."""
    properties = SimpleNamespace(
        name="A GPU", multi_processor_count=132, clock_rate=1_980_000, major=9, minor=0
    )
    pretended = {
        "Event": Event,
        "synchronize": lambda: None,
        "current_device": lambda: 0,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 350,
        "get_device_name": lambda: "A GPU",
        "device_count": lambda: 1,
        "get_device_properties": lambda device: properties,
    }
    for name, value in pretended.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(meters, "find", lambda kind: cuda.Cuda())
    meters.meter.cache_clear()
    yield
    meters.meter.cache_clear()


def test_a_gpu_is_timed_by_its_own_events(device: None) -> None:
    def call() -> None:
        Event.now += 1

    by = meters.meter("cuda")
    assert by.mean(call, 4) == 1e-3 and by.once(call) == (1e-3, 250)


def test_the_environment_tells_of_the_device(device: None) -> None:
    result = run.head("cuda", {}) | {"commit": "abc"}
    page = gpu_environment.environment(result, "cuda")
    for line in ("device: A GPU", "multi_processor_count: 132", "devices: 1", "commit: abc"):
        assert line in page.splitlines()
    assert "-smi" in page and "backend reference" in page


def test_torch_measures_a_copy_and_a_launch_anywhere() -> None:
    rates = gpu_ceiling.torch_rates("cpu", copied=2**26)
    assert set(rates) == {"torch_copy_gb", "torch_launch_us", "torch_wait_us"}
    assert min(rates.values()) > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_the_ceiling_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ["nvcc", *gpu_ceiling.FLAGS, "-arch=sm_90"]
    assert ceiling.compiled(gpu_ceiling.SOURCE, command, "any").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here")
def test_the_ceiling_computes_what_it_claims_to() -> None:
    sentence = gpu_ceiling.why_not()
    if sentence is not None:
        pytest.skip(sentence)
    rates = gpu_ceiling.program_rates()
    assert min(rates.values()) > 0
    assert rates["scores_error"] < 1e-4 and rates["tanh_scores_error"] < 1e-2
