"""Run random cases of every public function on every backend, and compare them with float64.

    python -m tools.soak [--backend NAME ...] [--cases N] [--seed S]
    python -m tools.soak --backend NAME --case N     # one case, whose number a failure printed
    python -m tools.soak --memory                    # many calls, in memory that must not grow
    python -m tools.soak --races                     # the CPU kernels under ThreadSanitizer

Every backend runs in a process of its own. A run continues where the last one with its seed
stopped, by Ctrl-C or otherwise. FOLDER holds its state and failures.jsonl. The command exits with 0
if nothing failed, with 1 if something did, and with 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from tools import interpreter

from .case import LIMITS

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"native": 100_000, "reference": 10_000, "emulated": 10_000, "interpreted": 2_000}
CALLS = 20_000
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--backend", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--cases", type=int, help="per backend; default: " + _counts())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case alone")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "soak")
    parser.add_argument("--restart", action="store_true", help="forget the state of the last run")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--calls", type=int, default=CALLS, help="of --memory, per function")
    parser.add_argument("--races", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case is not None and len(options.backend) > 1:
        parser.error("--case needs one --backend")
    if options.races:
        from .races import find_races

        return find_races()
    if options.here:
        return _here(options)

    given = sys.argv[1:] if arguments is None else arguments
    statuses = []
    for backend in options.backend:
        statuses.append(_elsewhere(backend, [*given, "--here", "--backend", backend]))
        if statuses[-1] == INTERRUPTED:
            return INTERRUPTED
    return int(any(statuses))


def _counts() -> str:
    return ", ".join(f"{count:,} {name}" for name, count in COUNTS.items())


def environment(backend: str) -> dict[str, str]:
    """Return the environment in which a process has the backend."""
    changed = {"OMP_WAIT_POLICY": "passive"}  # threads that wait leave the processor to others
    if backend == "emulated" and "ATTNKERNELS_LIBRARY" not in os.environ:
        build = [sys.executable, str(ROOT / "tests/emulator/library.py")]
        made = subprocess.run(build, stdout=subprocess.PIPE, text=True, check=True)
        changed["ATTNKERNELS_LIBRARY"] = made.stdout.strip()
    if backend == "interpreted":
        changed["TRITON_INTERPRET"] = "1"
    return {**os.environ, **changed}


def _elsewhere(backend: str, arguments: list[str]) -> int:
    """Run the command in processes that have the backend, until one ends in order."""
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-m", "tools.soak", *arguments]
    while True:
        process = subprocess.Popen(command, env=environment(backend))
        status = _wait(process)
        if status in (0, 1, 2, INTERRUPTED):
            return status
        print(f"{backend}: the process ended with status {status}", flush=True)
        if {"--case", "--memory"} & set(arguments):
            return 1
        arguments = [each for each in arguments if each != "--restart"]
        command = [*command[:5], *arguments]  # it continues after the case that ended it


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Return the status of a process, which is told of an interrupt and ends by itself."""
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def _here(options: argparse.Namespace) -> int:
    """Run one backend in this process."""
    from .progress import Progress
    from .run import soak, try_case

    backend = options.backend[-1]
    if backend == "interpreted":
        interpreter.improve()
    if options.memory:
        from .memory import find_growth

        return find_growth(backend, options.calls)
    if options.case is not None:
        from .draw import draw

        case = draw(options.seed, options.case, backend)
        print(case)
        ratios, message = try_case(case)
        for name, ratio in (ratios or {}).items():
            print(f"{name}: {ratio:.3f} of the budget")
        print("passed" if message is None else f"FAILED: {message}")
        return int(message is not None)
    if options.restart:
        old = Progress(options.folder, backend, options.seed)
        old.path.unlink(missing_ok=True)
        old.running.unlink(missing_ok=True)
    cases = COUNTS[backend] if options.cases is None else options.cases
    progress, interrupted = soak(backend, seed=options.seed, cases=cases, folder=options.folder)
    print(progress.summary(), flush=True)
    return INTERRUPTED if interrupted else int(bool(progress.failures))
