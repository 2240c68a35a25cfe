"""Measure the cases on one device, the most important first, until the time is up.

    python -m benchmarks.gpu.cases --out DIR --until EPOCH [--device cuda|cpu] [--cases NAME,...]
                                   [--providers NAME,...] [--dtypes NAME,...] [--seconds S]

`benchmarks.gpu` runs this in a separate process, because after a kernel faults only a new process
can use the device. It adds case by case to DIR/results.json, which must exist, and continues where
an earlier process stopped.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from attnkernels.measure.files import folder
from attnkernels.measure.options import seconds
from attnkernels.profile.units import show_ms
from benchmarks.gpu.truth import Truth
from benchmarks.suite import cases, providers
from benchmarks.suite.absent import Absent, Attempt
from benchmarks.suite.cases import Case
from benchmarks.suite.measure import Timing, interleaved
from benchmarks.suite.meters import Call
from benchmarks.suite.providers import LATENCY, Provider
from benchmarks.suite.run import DTYPES, INTERRUPTED, rows, subset, write

FIRST = ("gpu-square", "gpu-step", "decoder-step", "rnnsearch", "gnmt")
LIST = "main,gpu-square,gpu-step"
_ORDER = [*("native", "triton"), *(provider.name for provider in providers.PROVIDERS)]
COMPARED = ("native", "triton", "eager", "compile")
PEERS = ("eager", "compile", "keops", "triton", "native")
STEP_SECONDS = 150  # limit of any step; anything longer counts as hanging
GENERATING = 30.0  # seconds assumed for generating code until it has been timed
STDERR = 2  # the file descriptor, whatever sys.stderr is
FAULTED = 3  # exit status: another process can continue


class Job(NamedTuple):
    case: Case
    direction: str
    dtype: str

    def attempt(self, provider: str) -> Attempt:
        return Attempt(self.case.name, self.direction, self.dtype, provider)


class Failed(Exception):
    """A call that ran before failed while it was measured; the first argument is its name."""


class Faulted(Exception):
    """This process can no longer use the device."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status of `work`."""
    parser = _parser()
    options = parser.parse_args(arguments)
    known = [provider.name for provider in providers.PROVIDERS if provider.name in PEERS]
    try:
        chosen = providers.choose(options.providers or ",".join(known))
        chosen.sort(key=_place)
        dtypes = subset("dtypes", options.dtypes, DTYPES)
        jobs = jobs_of(cases.choose(options.cases), dtypes, options.device)
    except ValueError as error:
        parser.error(str(error))
    absent = Absent(options.out / "absent.json")
    session = Session(options.device, chosen, absent, options.until, options.seconds)
    return work(jobs, session, options.out / "results.json")


def work(jobs: list[Job], session: Session, path: Path) -> int:
    """Add the missing rows to the result at `path`; return 0, 130 or FAULTED."""
    result = json.loads(path.read_text(encoding="utf-8"))
    done = {(row["case"], row["direction"], row["dtype"]) for row in result["cases"]}
    left = [job for job in jobs if (job.case.name, job.direction, job.dtype) not in done]
    try:
        for place, job in enumerate(left):
            if time.time() >= session.until:
                print(f"The time is up: {len(left) - place} of {len(jobs)} are left.", flush=True)
                break
            timings = session.measure(job, behind=len(left) - place - 1)
            result["cases"] += rows(*job, timings)
            write(path, result)
            said = ", ".join(f"{name} {show_ms(t.median_ms)}" for name, t in timings.items())
            title = f"{job.case.name} {job.direction} {job.dtype}"
            print(f"{title}: {said or 'nobody'}", flush=True)
    except Faulted as fault:
        session.absent.end()
        print(f"The device faulted: {fault}", flush=True)
        return FAULTED
    except KeyboardInterrupt:
        session.absent.end()
        return INTERRUPTED
    finally:
        faulthandler.cancel_dump_traceback_later()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.cases")
    add = parser.add_argument
    add("--out", type=folder, metavar="DIR", required=True)
    add("--until", type=float, metavar="EPOCH", required=True, help="start nothing after")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--cases", metavar="NAME,...", default=LIST)
    add("--providers", metavar="NAME,...")
    add("--dtypes", metavar="NAME,...", default="float32,bfloat16")
    add("--seconds", type=seconds, default=1.0, help="of timing a case (default: %(default)s)")
    return parser


def _place(provider: Provider) -> tuple[bool, int]:
    """Sort providers by what is most wanted, and those that generate code to the end."""
    return provider.generates, _ORDER.index(provider.name)


def jobs_of(chosen: list[Case], dtypes: list[str], device: str) -> list[Job]:
    """List the jobs, the most important first."""
    places = {name: place for place, name in enumerate(FIRST)}
    ordered = sorted(chosen, key=lambda case: places.get(case.name, len(FIRST)))
    return [
        Job(case, direction, dtype)
        for dtype in dtypes
        for case in ordered
        for direction in _directions(case, device)
    ]


def _directions(case: Case, device: str) -> list[str]:
    """Return the directions of a case; on a GPU a decoder's step adds a graph and its latency."""
    if device == "cuda":
        return [*case.directions, *([LATENCY] if cases.GRAPH in case.directions else [])]
    return [direction for direction in case.directions if direction != cases.GRAPH]


class Session:
    """The measurements of one process: its providers, its deadline, and the cost of making code."""

    def __init__(
        self, device: str, chosen: list[Provider], absent: Absent, until: float, seconds: float
    ) -> None:
        self.device, self.chosen, self.absent = device, chosen, absent
        self.until, self.seconds = until, seconds
        self._costs: dict[str, float] = {}  # seconds of the last first call, by provider

    def measure(self, job: Job, behind: int) -> dict[str, Timing]:
        """Time every provider that can run, and note why the others cannot.

        Code is generated only while enough time remains for the jobs `behind` that need none.
        """
        if self.device == "cuda":
            torch.cuda.empty_cache()
        reserve = behind * (1.5 * self.seconds + 0.5)
        truth = Truth(job.case, getattr(torch, job.dtype), self.device)
        calls: dict[str, Call] = {}
        for provider in self.chosen:
            attempt = job.attempt(provider.name)
            if attempt in self.absent or provider.name not in job.case.providers:
                continue
            dtype = getattr(torch, job.dtype)
            why = providers.why_not(provider, job.case, job.direction, dtype, self.device)
            why = why or self._no_time(provider, reserve)
            if why:
                self.absent.note(why, attempt)
            elif call := self._first_call(job, provider, truth):
                calls[provider.name] = call
        while True:
            self.absent.begin(*map(job.attempt, calls))
            _watch()
            try:
                timings = interleaved(calls, self.seconds, self.device)
            except Failed as failure:
                name = failure.args[0]
                del calls[name]
                self._failed(job.attempt(name), failure.__cause__ or failure)
            else:
                self.absent.end()
                for name in list(timings):
                    if why := _why_wrong(truth, job.direction, calls[name]):
                        del timings[name]
                        self.absent.note(why, job.attempt(name))
                return timings

    def _no_time(self, provider: Provider, reserve: float) -> str | None:
        left = self.until - time.time() - reserve
        cost = self._costs.get(provider.name, GENERATING)
        if not provider.generates or cost <= left:
            return None
        return f"making its code takes some {cost:.0f} s, and there are {max(left, 0):.0f} left"

    def _first_call(self, job: Job, provider: Provider, truth: Truth) -> Call | None:
        """Return the call, warmed up; if it fails or is wrong, note that and return None."""
        attempt, name = job.attempt(provider.name), provider.name
        self.absent.begin(attempt)
        _watch()
        start = time.perf_counter()
        dtype = getattr(torch, job.dtype)
        try:
            call = providers.prepare(provider, job.case, job.direction, dtype, self.device)
            result = call()
            if self.device == "cuda":
                torch.cuda.synchronize()
            self._costs[name] = time.perf_counter() - start
            truth.check(job.direction, result)
        except Exception as error:
            self._costs.setdefault(name, time.perf_counter() - start)
            self._failed(attempt, error)
            return None
        self.absent.end()
        return _guarded(name, call)

    def _failed(self, attempt: Attempt, error: BaseException) -> None:
        self.absent.note(sentence(error), attempt)
        print(f"{' '.join(attempt)}: {sentence(error)}", flush=True)
        if self.device == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError as fault:
                raise Faulted(sentence(fault)) from fault


def _why_wrong(truth: Truth, direction: str, call: Call) -> str | None:
    """Return None if what was timed computes the right result, otherwise a sentence."""
    try:
        truth.check(direction, call())
    except Exception as error:
        return f"after it was timed: {sentence(error)}"
    return None


def _guarded(name: str, call: Call) -> Call:
    def guarded() -> object:
        try:
            return call()
        except Exception as error:
            raise Failed(name) from error

    return guarded


def _watch() -> None:
    """End the process, with a traceback, unless this is called again in time."""
    faulthandler.dump_traceback_later(STEP_SECONDS, exit=True, file=STDERR)


def sentence(error: BaseException) -> str:
    """Format an error as one line of a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:240]


if __name__ == "__main__":
    sys.exit(main())
