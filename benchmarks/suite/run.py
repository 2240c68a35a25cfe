"""Run the suite: medians of interleaved runs, as a table, JSON and a plot.

    python -m benchmarks.suite [--cases NAME,...] [--providers NAME,...] [--directions forward,both]
                             [--dtypes float32,bfloat16,float16] [--threads N] [--seconds S]
                             [--json FILE] [--plot FILE]

A complete run is saved as benchmarks/results/DATE-device.json, and `python -m
benchmarks.suite.table` puts it into the README. A partial run is saved where --json says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from attnkernels.measure import files
from attnkernels.measure.busy import Others, sentence
from attnkernels.measure.machine import cpu_name, triton_version
from attnkernels.measure.options import positive, seconds
from attnkernels.measure.wording import count, tolerate_any_encoding
from attnkernels.profile import tables
from benchmarks.ceiling.cpu import ceiling
from benchmarks.suite import cases, providers
from benchmarks.suite.cases import Case
from benchmarks.suite.commit import commit
from benchmarks.suite.measure import Timing, interleaved
from benchmarks.suite.plot import draw
from benchmarks.suite.providers import Provider
from benchmarks.suite.rates import Result, spreads
from benchmarks.suite.table import rich_table

RESULTS = Path(__file__).parents[1] / "results"
DTYPES = ("float32", "bfloat16", "float16")
INTERRUPTED = 130  # the status that a shell reports after SIGINT


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 130 if interrupted, 2 for bad usage."""
    tolerate_any_encoding()
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        chosen_cases = cases.choose(options.cases)
        chosen_providers = providers.choose(options.providers)
        directions = subset("directions", options.directions, cases.DIRECTIONS)
        dtypes = subset("dtypes", options.dtypes, DTYPES)
        files.check({"--json": vars(options).get("json"), "--plot": options.plot})
        files.check_figure("--plot", options.plot)
    except ValueError as error:
        parser.error(str(error))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # KeOps reads it

    console = tables.console()
    result = head("cpu", ceiling())
    whole = options.cases is None and options.providers is None
    default = RESULTS / default_name(result) if whole else None
    path: Path | None = vars(options).get("json", default)
    console.print(f"{result['cpu']}, {count(result['threads'], 'thread')}, torch {result['torch']}")
    jobs = [
        (case, direction, dtype)
        for case in chosen_cases
        for direction in directions
        if direction in case.directions
        for dtype in dtypes
    ]
    interrupted, others = False, Others()
    try:
        for rows in _measure(jobs, chosen_providers, options.seconds, console):
            result["cases"] += rows
            if path is not None and not files.is_stream(path):
                write(path, result)
    except KeyboardInterrupt:
        interrupted = True
    if result["cases"]:
        console.print(*rich_table(result))
        if busy := sentence(others.cpus(), spreads(result)):
            console.print(busy, style="yellow", highlight=False)
        if path is not None and files.is_stream(path):
            write(path, result)
        drawn = options.plot is not None and draw(options.plot, result)
        written = {"json": path, "plot": options.plot if drawn else None}
        for kind, file in written.items():
            if file is not None:
                console.print(f"{kind}: {file.resolve()}", soft_wrap=True, highlight=False)
    if interrupted:
        console.print("Interrupted: these are the measurements so far.")
    return INTERRUPTED if interrupted else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite", description="Additive attention against its peers."
    )
    add = parser.add_argument
    names = ", ".join(case.name for case in cases.CASES)
    add("--cases", metavar="NAME,...", help=f"cases or groups main, small, long; cases: {names}")
    names = ", ".join(provider.name for provider in providers.PROVIDERS)
    add("--providers", metavar="NAME,...", help=names)
    add("--directions", default="forward,both", help="default: %(default)s")
    add("--dtypes", default="float32", help=f"of {', '.join(DTYPES)} (default: %(default)s)")
    add("--threads", type=positive, help="default: PyTorch's")
    add("--seconds", type=seconds, default=5.0, help="of timing a case (default: %(default)s)")
    help = "or none (default: among the results, if the run is complete)"
    add("--json", type=files.output, default=argparse.SUPPRESS, metavar="FILE", help=help)
    plot, help = Path("build/benchmarks.png"), "or none (default: %(default)s)"
    add("--plot", type=files.output, default=plot, metavar="FILE", help=help)
    return parser


def subset(name: str, wanted: str, known: tuple[str, ...]) -> list[str]:
    """Split the names of an option at commas; raise ValueError if one is unknown."""
    unknown = [each for each in wanted.split(",") if each not in known]
    if unknown:
        raise ValueError(f"--{name}: no {', '.join(unknown)}; there are {', '.join(known)}")
    return wanted.split(",")


def _measure(
    jobs: list[tuple[Case, str, str]],
    chosen: list[Provider],
    seconds: float,
    console: Console,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one case, direction and dtype at a time, and print what is missing."""
    said: set[tuple[Provider, str]] = set()  # each reason once
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(jobs))
        for case, direction, name in jobs:
            dtype = getattr(torch, name)
            job = f"{case.name}, {direction}, {name}"
            calls = {}
            for provider in chosen:
                sentence = providers.why_not(provider, case, direction, dtype)
                if sentence is None:
                    progress.update(task, description=f"{job}: preparing {provider.name}")
                    call = calls[provider.name] = providers.prepare(
                        provider, case, direction, dtype
                    )
                    call()  # compiles
                elif provider.name in case.providers and (provider, sentence) not in said:
                    said.add((provider, sentence))
                    console.print(f"{job}: {provider.name}: {sentence}", highlight=False)
            progress.update(task, description=f"{job}: measuring")
            yield rows(case, direction, name, interleaved(calls, seconds))
            progress.advance(task)


def rows(
    case: Case, direction: str, dtype: str, timings: dict[str, Timing]
) -> list[dict[str, Any]]:
    """Return the measurements of one case in the form of the JSON: one row per provider."""
    return [
        {
            "case": case.name,
            "shape": list(case.shape),
            **({} if case.window is None else {"window": case.window}),
            "direction": direction,
            "dtype": dtype,
            "provider": provider,
            "median_ms": round(timing.median_ms, 5),
            "min_ms": round(timing.min_ms, 5),
            "peak_mib": round(timing.peak_mib, 3),
        }
        for provider, timing in timings.items()
    ]


def head(device: str, rates: dict[str, float]) -> Result:
    """Make a result without cases: the machine, the versions, and the ceiling of the device.

    The device is "cpu" or the name of the GPU.
    """
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": triton_version(),
        "commit": commit(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "ceiling": rates,
        "cases": [],
    }


def default_name(result: Result) -> str:
    """Return DATE-device.json, with the processor's name for a CPU."""
    name = f"cpu {result['cpu']}" if result["device"] == "cpu" else result["device"]
    device = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{result['date'][:10]}-{device}.json"


def write(path: Path, result: Result) -> None:
    """Write the result as JSON, with one line per measurement."""
    head = json.dumps({**result, "cases": []}, indent=1).removesuffix("[]\n}")
    lines = ",\n  ".join(json.dumps(row) for row in result["cases"])
    files.write(path, f"{head}[\n  {lines}\n ]\n}}\n")
