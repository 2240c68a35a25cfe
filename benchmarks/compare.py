"""Compare two commits: build both, time them in turns, and say which cases became slower.

    python -m benchmarks.compare --base REF [--head REF|worktree] [--cases NAME,...]
                                 [--seconds S] [--threads N] [--json FILE] [--clean]

A case is slower if the whole interval of its ratio lies above 1.03, and still does after new
processes have measured it again; the exit status is then 1. A commit against itself (`--base REF
--head REF`) shows the smallest difference that this machine can detect.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from attnkernels.measure import files
from attnkernels.measure.machine import cpu_name
from attnkernels.measure.options import positive, seconds
from attnkernels.measure.wording import count, tolerate_any_encoding
from attnkernels.profile import tables
from benchmarks.comparison import build, jobs, report
from benchmarks.comparison.build import WORKTREE, BuildError
from benchmarks.comparison.interleave import SIDES, Measured, WorkerError, measure

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 1 if a case is slower or fails, 0 if none is, 2 on an error."""
    tolerate_any_encoding()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.base is None and not options.clean:
        parser.error("--base REF is needed: the commit to compare with")
    try:
        chosen = jobs.choose(options.cases)
        files.check({"--json": options.json})
    except ValueError as error:
        parser.error(str(error))
    try:
        return _compare(options, chosen) if options.base is not None else 0
    except (BuildError, WorkerError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    finally:
        if options.clean:
            build.clean(ROOT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description="The times of two commits, side by side."
    )
    add = parser.add_argument
    add("--base", metavar="REF", help="the commit to compare with")
    add("--head", metavar="REF", default=WORKTREE, help="default: %(default)s, as it is now")
    names = ", ".join(dict.fromkeys(job.case for job in jobs.jobs()))
    add("--cases", metavar="NAME,...", help=f"groups tiny and suite, or cases: {names}")
    add("--seconds", type=seconds, default=5.0, help="of timing per case (default: %(default)s)")
    add("--threads", type=positive, default=torch.get_num_threads(), help="default: PyTorch's")
    add("--json", type=files.output, metavar="FILE")
    add("--clean", action="store_true", help="remove the built trees, at the end or alone")
    return parser


def _compare(options: argparse.Namespace, chosen: list[jobs.Job]) -> int:
    console = tables.console(highlight=False)
    trees = {}
    with console.status("") as status:
        for side in SIDES:
            ref = getattr(options, side)
            status.update(f"building {ref}")
            trees[side] = build.make(ROOT, ref)
        run = partial(
            measure,
            {side: tree.path for side, tree in trees.items()},
            seconds=options.seconds,
            threads=options.threads,
            progress=status.update,
        )
        measured = run(chosen)
        # Among so many cases one may look slower by chance, which new processes then refute.
        suspects = [job for job in chosen if report.is_slower(measured.bursts[job])]
        for job, pairs in (run(suspects) if suspects else Measured({}, {})).bursts.items():
            measured.bursts[job] += pairs
    rows = report.rows(measured)
    about = {
        **{side: {"ref": tree.ref, "commit": tree.label} for side, tree in trees.items()},
        "device": "cpu",
        "cpu": cpu_name(),
        "load": round(os.getloadavg()[0], 2),
        "threads": options.threads,
        "torch": torch.__version__,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    console.print(
        f"base {trees['base'].label}, head {trees['head'].label}; {about['cpu']}, "
        f"{count(options.threads, 'thread')}, load {about['load']}, torch {about['torch']}, "
        f"{about['date']}"
    )
    console.print(report.table(measured, rows))
    for row in rows:
        for side, error in row.get("errors", {}).items():
            console.print(f"{row['case']} {row['direction']}: {side}: {error}", markup=False)
    if options.json:
        files.write(options.json, json.dumps(about | {"cases": rows}, indent=1) + "\n")
    verdicts = Counter(row["verdict"] for row in rows)
    console.print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    if verdicts["unclear"]:
        console.print(
            f"unclear: a change of {report.LIMIT}x is within the spread; --seconds narrows it, and "
            "so does an idle machine"
        )
    return int(verdicts["slower"] + verdicts["fails"] > 0)


if __name__ == "__main__":
    sys.exit(main())
