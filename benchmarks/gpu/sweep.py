"""Find the fastest configuration of the Triton kernels, case by case.

    python -m benchmarks.gpu.sweep --out DIR --until EPOCH [--device cuda|cpu] [--seconds S]

The configurations are those of `candidates()` in attnkernels.backends.triton.host.configs, which
maps names to functions that put one in use. Each is a provider in DIR/sweep.json, which has the
form of DIR/results.json; an interrupted sweep continues.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import Tensor

from attnkernels.measure.files import folder
from attnkernels.measure.options import seconds
from benchmarks.gpu.cases import Session, jobs_of, work
from benchmarks.suite.absent import Absent
from benchmarks.suite.cases import Case, Inputs, choose
from benchmarks.suite.providers import LATENCY, PROVIDERS, Built, Provider
from benchmarks.suite.run import write

CONFIGS = "attnkernels.backends.triton.host.configs"
CASES = "gpu-square,gpu-step"
Use = Callable[[], object]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if there is nothing to sweep, else the status of `work`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sweep")
    add = parser.add_argument
    add("--out", type=folder, metavar="DIR", required=True)
    add("--until", type=float, metavar="EPOCH", required=True, help="start nothing after")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--seconds", type=seconds, default=1.0, help="of timing a case (default: %(default)s)")
    options = parser.parse_args(arguments)
    return sweep(options.out, options.device, options.until, options.seconds)


def sweep(out: Path, device: str, until: float, seconds: float) -> int:
    """Measure every candidate in every case."""
    try:
        offered: Callable[[], dict[str, Use]] = import_module(CONFIGS).candidates
    except (ImportError, AttributeError) as error:
        print(f"A sweep is not available: {error}", flush=True)
        return 0
    candidates = offered()
    (triton,) = (provider for provider in PROVIDERS if provider.name == "triton")
    chosen = [_configured(triton, name, use) for name, use in candidates.items()]
    swept = [case._replace(providers=frozenset(candidates)) for case in choose(CASES)]
    path = out / "sweep.json"
    if not path.exists():
        result = json.loads((out / "results.json").read_text(encoding="utf-8"))
        write(path, result | {"cases": []})
    session = Session(device, chosen, Absent(out / "sweep-absent.json"), until, seconds)
    jobs = [job for job in jobs_of(swept, ["float32"], device) if job.direction != LATENCY]
    return work(jobs, session, path)


def _configured(triton: Provider, name: str, use: Use) -> Provider:
    def build(case: Case, given: Inputs) -> Built:
        context, leaves = triton.build(case, given)

        def configured() -> Tensor:
            use()  # also in force for the backward, which runs before the next provider
            return context()

        return configured, leaves

    return Provider(name, triton.why_not, build)


if __name__ == "__main__":
    sys.exit(main())
