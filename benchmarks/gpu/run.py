"""Test and measure everything on a machine with a GPU, in one command of a few minutes.

    python -m benchmarks.gpu --out DIR [--budget SECONDS] [--seconds S] [--sweep]
                             [--skip STAGE,...] [--cases NAME,...] [--providers NAME,...]
                             [--device cuda|cpu] [--commit TEXT]

The stages are environment, tests (those marked gpu), ceilings, cases, long, sanitizer (if
compute-sanitizer is installed), and sweep (with --sweep). A stage that fails does not end the run.
DIR always has the results so far:

    environment.txt          the device, the versions, the available backends
    tests.txt, tests.xml     the output of pytest
    results.json             the input of benchmarks.suite.table, for the README
    sanitizer-*.txt          the output of each compute-sanitizer tool on the native kernels
    absent.json              the measurements that are missing, and why
    sweep*.json              the same two, for configurations of the Triton kernels
    summary.txt              everything on one page

The same command continues where it stopped; `--budget` then starts anew.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from attnkernels.measure import cuda, files
from attnkernels.measure.files import folder
from attnkernels.measure.options import seconds
from attnkernels.measure.wording import tolerate_any_encoding
from attnkernels.profile import tables
from benchmarks.ceiling import cpu as ceiling
from benchmarks.ceiling import gpu as gpu_ceiling
from benchmarks.gpu.cases import sentence
from benchmarks.gpu.environment import environment
from benchmarks.gpu.summary import show, summary
from benchmarks.suite.rates import Result
from benchmarks.suite.run import INTERRUPTED, head, write
from tools.sanitizer import tool as gpu_sanitizer

ROOT = Path(__file__).resolve().parents[2]
TESTS = ["-m", "pytest", "-m", "gpu", "-v", "--tb=short", "--durations=10"]
TESTS += ["-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]
TESTS += ["--continue-on-collection-errors"]  # in files that need no GPU
# Shares of the budget: the limit of the tests, and the reserves of the last stages.
TESTS_SHARE, LONG_SHARE, SANITIZER_SHARE, SWEEP_SHARE, END_SHARE = 0.4, 0.06, 0.15, 0.2, 0.03
GRACE = 10.0  # seconds for an interrupted process to save its results
SAME = ("device", "torch", "triton", "commit")  # must agree within one table


@dataclass(frozen=True)
class Run:
    """The state that the stages share. `result` is saved to results.json at every change."""

    options: argparse.Namespace
    began: float
    result: Result
    notes: list[str] = field(default_factory=list)  # failures, for the summary

    @property
    def out(self) -> Path:
        return self.options.out

    def until(self, *kept: float) -> float:
        """Return the deadline that leaves these shares of the budget."""
        return self.began + self.options.budget * (1 - sum(kept))

    def note(self, line: str) -> None:
        self.notes.append(line)
        print(line, flush=True)

    def save(self) -> None:
        write(self.out / "results.json", self.result)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return 0, 130 if interrupted, or 2 for bad usage or no GPU."""
    tolerate_any_encoding()
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = [name for name in options.skip if name not in STAGES]
    if unknown:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    missing = cuda.why_not() if options.device == "cuda" else None
    if missing:
        print(missing, file=sys.stderr)
        return 2
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        result = _begin(options)
    except ValueError as error:
        parser.error(str(error))
    run = Run(options, time.time(), result)
    interrupted = False
    for name, stage in STAGES.items():
        if name in options.skip or (name == "sweep" and not options.sweep):
            continue
        print(f"== {name} ({max(run.until() - time.time(), 0):.0f} s left)", flush=True)
        try:
            stage(run)
        except KeyboardInterrupt:
            interrupted = True
            break
        except Exception as error:
            run.note(f"{name}: {sentence(error)}")
        summary(options.out, run.notes)
    summary(options.out, run.notes)
    show(tables.console(highlight=False, markup=False), options.out, run.notes)
    return INTERRUPTED if interrupted else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Tests and benchmarks of a GPU."
    )
    add = parser.add_argument
    add("--out", type=folder, metavar="DIR", required=True, help="where everything is written")
    add("--budget", type=seconds, default=510, metavar="SECONDS", help="default: %(default)s")
    add("--seconds", type=seconds, default=1.0, help="of timing a case (default: %(default)s)")
    add("--sweep", action="store_true", help="configurations of the Triton kernels as well")
    add("--skip", type=lambda names: names.split(","), default=[], metavar="STAGE,...")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--commit", help="a name for the code, if there is no git")
    for name in ("cases", "providers"):
        add(f"--{name}", metavar="NAME,...", help="instead of those of benchmarks.gpu.cases")
    return parser


def _begin(options: argparse.Namespace) -> Result:
    """Return the result in DIR, or a new one; raise ValueError if it is from another setup."""
    new = head(options.device, {})
    new["commit"] = options.commit or new["commit"]
    path = options.out / "results.json"
    if not path.exists():
        return new
    old = json.loads(path.read_text(encoding="utf-8"))
    changed = [f"{name} {old[name]}, now {new[name]}" for name in SAME if old[name] != new[name]]
    if changed:
        raise ValueError(f"{path} is of {'; '.join(changed)}: take another --out")
    return old


def _environment(run: Run) -> None:
    page = environment(run.result, run.options.device)
    files.write(run.out / "environment.txt", page)
    run.save()


def _tests(run: Run) -> None:
    limit = TESTS_SHARE * run.options.budget
    command = [sys.executable, *TESTS, f"--junitxml={run.out / 'tests.xml'}"]
    with (run.out / "tests.txt").open("w", encoding="utf-8") as sink:
        if _run(command, limit, sink) is None:
            sink.write(f"\nStopped after {limit:.0f} s.\n")


def _ceilings(run: Run) -> None:
    known = run.result["ceiling"]
    if run.options.device == "cpu":
        known |= ceiling.ceiling()
    else:
        known |= gpu_ceiling.device_rates() | gpu_ceiling.torch_rates("cuda")
        run.save()
        why = gpu_ceiling.why_not()
        if why is None:
            try:
                known |= gpu_ceiling.program_rates()
            except subprocess.CalledProcessError as error:
                why = f"gpu.cu: {error.stderr.strip()}"
        if why:
            run.note(why)
    run.save()


def _cases(run: Run) -> None:
    _measure(run, LONG_SHARE, *(["--cases", run.options.cases] if run.options.cases else []))


def _long(run: Run) -> None:
    _measure(run, 0.0, "--cases", "gpu-long", "--dtypes", "float32")


def _measure(run: Run, kept: float, *arguments: str) -> None:
    until = run.until(*_last(run), SANITIZER_SHARE * _sanitizes(run), kept)
    chosen = ["--providers", run.options.providers] if run.options.providers else []
    _work(run, "benchmarks.gpu.cases", until, *chosen, *arguments)


def _last(run: Run) -> tuple[float, ...]:
    """Return the shares of the last stages."""
    return END_SHARE, SWEEP_SHARE * run.options.sweep


def _sanitizes(run: Run) -> bool:
    return "sanitizer" not in run.options.skip and not gpu_sanitizer.why_not(run.options.device)


def _sanitizer(run: Run) -> None:
    """Run each tool over the same small calls, with equal parts of the remaining time."""
    why = gpu_sanitizer.why_not(run.options.device)
    if why:
        run.note(f"sanitizer: {why}")
        return
    found = run.result["sanitizer"] = {}
    run.result["cases"] = run.result.pop("cases")  # one line each, as write() makes them
    for place, tool in enumerate(gpu_sanitizer.TOOLS):
        left = max(run.until(*_last(run)) - time.time(), 0)
        limit = left / (len(gpu_sanitizer.TOOLS) - place)
        with gpu_sanitizer.said(run.out, tool).open("w", encoding="utf-8") as sink:
            status = _run(gpu_sanitizer.command(tool), limit, sink, **gpu_sanitizer.ENVIRONMENT)
        found[tool] = gpu_sanitizer.outcome(status, limit)
        print(f"{tool}: {found[tool]}", flush=True)
        run.save()


def _sweep(run: Run) -> None:
    _work(run, "benchmarks.gpu.sweep", run.until(END_SHARE))


STAGES: dict[str, Callable[[Run], None]] = {
    "environment": _environment,
    "tests": _tests,
    "ceilings": _ceilings,
    "cases": _cases,
    "long": _long,
    "sanitizer": _sanitizer,
    "sweep": _sweep,
}


def _work(run: Run, module: str, until: float, *arguments: str) -> None:
    """Run a module that measures, and again after a fault while it makes progress."""
    run.save()
    command = [sys.executable, "-m", module, "--out", str(run.out), "--until", str(until)]
    command += ["--device", run.options.device, "--seconds", str(run.options.seconds), *arguments]
    before = None
    while True:
        status = _run(command, max(until - time.time(), 0) + GRACE)
        if status:
            run.note(f"{module} ended with status {status}")
        elif status is None:
            run.note(f"{module} was stopped, because the time was up")
        state = [path.read_bytes() for path in sorted(run.out.glob("*.json"))]
        if not status or state == before or time.time() > until:
            break
        before = state
    result = json.loads((run.out / "results.json").read_text(encoding="utf-8"))
    run.result["cases"] = result["cases"]


def _run(
    command: list[str], limit: float, sink: IO[str] | None = None, **environment: str
) -> int | None:
    """Return the exit status of `command`; None if it was stopped after `limit` seconds."""
    environ = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}  # its output survives a stop
    output: dict[str, Any] = {"stdout": sink, "stderr": subprocess.STDOUT if sink else None}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True, **output)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for sent in (signal.SIGINT, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, sent)
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    continue
