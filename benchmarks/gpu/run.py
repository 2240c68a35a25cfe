"""Check, measure and test everything on a machine with a GPU, in stages of a few minutes.

    python -m benchmarks.gpu --out DIR [--stages A,B,C] [--budget SECONDS] [--seconds S]
                             [--skip PART,...] [--cases NAME,...] [--providers NAME,...]
                             [--device cuda|cpu] [--commit TEXT]

    A   at most 4 minutes: the environment; a check of each backend in its own process, as models
        use it; the most important cases of the benchmarks in float32 and bfloat16
    B   at most 5 minutes: the tests marked gpu, each backend in its own process; ceilings
    C   at most 5 minutes, on request: compute-sanitizer, the other cases, a long one, and with
        --sweep configurations of the Triton kernels

By default A and B run. Each can run alone, and the same command continues where it stopped. A part
that fails does not end its stage. Nothing is downloaded or installed. DIR always has the results so
far, in at most eight files:

    environment.txt          the device, the versions, the available backends
    results.json             the input of benchmarks.suite.table, for the README
    absent.json              the measurements that are missing, and why
    tests.txt                the output of pytest
    sanitizer.txt            the output of compute-sanitizer on the native kernels
    sweep.json, sweep-absent.json    the same as above, for configurations of the Triton kernels
    summary.txt              everything on one page
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
from math import inf
from pathlib import Path
from typing import IO, Any, NamedTuple

from attnkernels.measure import cuda, files
from attnkernels.measure.files import folder
from attnkernels.measure.options import seconds
from attnkernels.measure.wording import tolerate_any_encoding
from attnkernels.profile import tables
from benchmarks.ceiling import cpu as ceiling
from benchmarks.ceiling import gpu as gpu_ceiling
from benchmarks.gpu.cases import COMPARED, FIRST, sentence
from benchmarks.gpu.environment import environment
from benchmarks.gpu.summary import show, summary
from benchmarks.suite.rates import Result
from benchmarks.suite.run import INTERRUPTED, head, write
from tools.sanitizer import driver
from tools.sanitizer import tool as gpu_sanitizer

ROOT = Path(__file__).resolve().parents[2]
TESTS = ["-m", "pytest", "-m", "gpu", "-v", "--tb=short", "--durations=10"]
TESTS += ["-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]
TESTS += ["--continue-on-collection-errors"]  # in files that need no GPU
BACKENDS = ("native", "triton")
GRACE = 5.0  # seconds for an interrupted process to save its results
END = 5.0  # seconds of a stage for the summary
CHECK = {"native": 20.0, "triton": 45.0}  # seconds, of which Triton compiles for most
TEST = 120.0  # seconds of a backend
LONG = 30.0
SAME = ("device", "torch", "triton", "commit")  # must agree within one table


@dataclass(frozen=True)
class Run:
    """The state that the stages share. `result` is saved to results.json at every change."""

    options: argparse.Namespace
    began: float
    limit: float  # of this stage, in seconds
    result: Result
    notes: list[str] = field(default_factory=list)  # failures, for the summary

    @property
    def out(self) -> Path:
        return self.options.out

    def until(self, kept: float = 0.0) -> float:
        """Return when to start nothing more, for the stage to end in time with `kept` seconds."""
        return self.began + self.limit - END - 2 * GRACE - kept

    def note(self, line: str) -> None:
        self.notes.append(line)
        print(line, flush=True)

    def read(self) -> None:
        """Read what another process added."""
        self.result.update(json.loads((self.out / "results.json").read_text(encoding="utf-8")))

    def save(self) -> None:
        write(self.out / "results.json", self.result)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return 0, 130 if interrupted, or 2 for bad usage or no GPU."""
    tolerate_any_encoding()
    parser = _parser()
    options = parser.parse_args(arguments)
    for kind, chosen, known in (
        ("part", options.skip, [name for stage in STAGES.values() for name in stage.parts]),
        ("stage", options.stages, list(STAGES)),
    ):
        if unknown := [name for name in chosen if name not in known]:
            parser.error(f"no {kind} {', '.join(unknown)}; there are {', '.join(known)}")
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
    notes: list[str] = []
    interrupted = False
    for name in options.stages:
        limit = min(options.budget, STAGES[name].limit)
        interrupted = interrupted or _stage(name, Run(options, time.time(), limit, result, notes))
    show(tables.console(highlight=False, markup=False), options.out, notes)
    return INTERRUPTED if interrupted else 0


def _stage(name: str, run: Run) -> bool:
    """Run the parts of a stage; return True if it was interrupted."""
    for part, do in STAGES[name].parts.items():
        if part in run.options.skip:
            continue
        left = max(run.began + run.limit - time.time(), 0)
        print(f"== {name}: {part} ({left:.0f} s left)", flush=True)
        try:
            do(run)
        except KeyboardInterrupt:
            return True
        except Exception as error:
            run.note(f"{part}: {sentence(error)}")
        finally:
            summary(run.out, run.notes)
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Tests and benchmarks of a GPU."
    )
    add = parser.add_argument
    add("--out", type=folder, metavar="DIR", required=True, help="where everything is written")
    add("--stages", type=lambda names: names.split(","), default=["A", "B"], metavar="NAME,...")
    add("--budget", type=seconds, default=inf, metavar="SECONDS", help="of a stage, if less")
    add("--seconds", type=seconds, default=0.5, help="of timing a case (default: %(default)s)")
    add("--sweep", action="store_true", help="configurations of the Triton kernels as well")
    add("--skip", type=lambda names: names.split(","), default=[], metavar="PART,...")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--commit", help="a name for the code, if there is no git")
    for name in ("cases", "providers"):
        add(f"--{name}", metavar="NAME,...", help="instead of those of benchmarks.gpu.cases")
    return parser


def _begin(options: argparse.Namespace) -> Result:
    """Return the result in DIR, or a new one; raise ValueError if it is from another setup."""
    new = head(options.device, {}) | {"check": {}}
    new["cases"] = new.pop("cases")  # one line each, as write() makes them
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
    if run.options.device == "cuda":  # what the tables of a stage without ceilings compare with
        run.result["ceiling"] |= gpu_ceiling.device_rates() | gpu_ceiling.torch_rates("cuda")
    run.save()


def _check(run: Run) -> None:
    """Check each backend in a process of its own: after a fault there is none."""
    run.save()
    for name in BACKENDS:
        limit = min(CHECK[name], run.until() - time.time())
        command = [sys.executable, "-m", "benchmarks.gpu.check", "--out", str(run.out)]
        command += ["--backend", name, "--device", run.options.device]
        status = _run([*command, "--until", str(time.time() + limit)], limit + GRACE)
        if status != 0:
            how = f"ended with status {status}" if status else "was stopped"
            run.note(f"the check of {name} {how}")
        run.read()


def _tests(run: Run) -> None:
    with (run.out / "tests.txt").open("w", encoding="utf-8") as sink:
        for name in BACKENDS:
            (other,) = set(BACKENDS) - {name}
            limit = min(TEST, run.until() - time.time())
            sink.write(f"== {name}\n")
            sink.flush()
            if _run([sys.executable, *TESTS, "--without", other], limit, sink) is None:
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


def _first(run: Run) -> None:
    chosen = run.options.providers or ",".join(COMPARED)
    _measure(run, 0.0, "--cases", run.options.cases or ",".join(FIRST), "--providers", chosen)


def _rest(run: Run) -> None:
    chosen = ["--providers", run.options.providers] if run.options.providers else []
    _measure(run, LONG, *chosen, *(["--cases", run.options.cases] if run.options.cases else []))


def _long(run: Run) -> None:
    _measure(run, 0.0, "--cases", "gpu-long", "--dtypes", "float32")


def _measure(run: Run, kept: float, *arguments: str) -> None:
    _work(run, "benchmarks.gpu.cases", run.until(kept), *arguments)


def _sanitizer(run: Run) -> None:
    """Build the driver and run each tool over it, with equal parts of half of the stage."""
    why = gpu_sanitizer.why_not(run.options.device)
    if why:
        run.note(f"sanitizer: {why}")
        return
    found = run.result["sanitizer"] = {}
    run.result["cases"] = run.result.pop("cases")  # one line each, as write() makes them
    each = run.limit / 2 / len(gpu_sanitizer.TOOLS)
    architecture = gpu_sanitizer.architecture()
    with gpu_sanitizer.said(run.out).open("w", encoding="utf-8") as sink:
        build = [sys.executable, "-m", "tools.sanitizer.driver", architecture]
        if _run(build, run.limit / 4, sink) != 0:
            run.note(f"sanitizer: the driver was not built; {gpu_sanitizer.said(run.out)} says why")
            return
        for tool in gpu_sanitizer.TOOLS:
            sink.write(f"== {tool}\n")
            sink.flush()
            status = _run(gpu_sanitizer.command(tool, driver.program(architecture)), each, sink)
            found[tool] = gpu_sanitizer.outcome(status, each)
            print(f"{tool}: {found[tool]}", flush=True)
            run.save()


def _sweep(run: Run) -> None:
    if run.options.sweep:
        _work(run, "benchmarks.gpu.sweep", run.until())


class Stage(NamedTuple):
    """The seconds that a stage may take, and its parts in order."""

    limit: float
    parts: dict[str, Callable[[Run], None]]


STAGES = {
    "A": Stage(240, {"environment": _environment, "check": _check, "cases": _first}),
    "B": Stage(300, {"ceilings": _ceilings, "tests": _tests}),
    "C": Stage(300, {"sanitizer": _sanitizer, "rest": _rest, "long": _long, "sweep": _sweep}),
}


def _work(run: Run, module: str, until: float, *arguments: str) -> None:
    """Run a module that measures, and again after a fault while it makes progress."""
    if time.time() >= until:
        run.note(f"{module}: there was no time left")
        return
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
    run.read()


def _run(command: list[str], limit: float, sink: IO[str] | None = None) -> int | None:
    """Return the exit status of `command`; None if it was stopped after `limit` seconds."""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}  # its output survives a stop
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
