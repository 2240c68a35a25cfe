"""Choose what is compared: the suite's short cases, and tiny calls that show overhead."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.suite import cases

SUITE = (
    "rnnsearch",
    "gnmt",
    "decoder-step",
    "decoder-step-prepared",
    "tacotron-step",
    "pooling",
    "pointer",
    "square",
    "square-128",
)
IN_BFLOAT16 = ("decoder-step-prepared", "square-128")
BOTH = cases.DIRECTIONS
FORWARD = ("forward",)


class Job(NamedTuple):
    """One comparison. `kind` names a builder of `worker.py`; `shape` is (B, n, m, d, dv)."""

    case: str
    kind: str
    shape: tuple[int, int, int, int, int]
    direction: str
    dtype: str = "float32"

    @property
    def label(self) -> str:
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.case} {self.direction}{dtype}"


# In the tiny cases Python and the dispatcher take most of the time: shapes grow with d = dv.
_ONE, _STEP = (1, 1, 1, 16, 16), (1, 1, 8, 64, 64)
_TINY: tuple[tuple[str, str, tuple[int, int, int, int, int], tuple[str, ...], str], ...] = (
    ("call-1x1x1x16", "attention", _ONE, BOTH, "float32"),
    ("call-1x1x8x64", "attention", _STEP, BOTH, "float32"),
    ("call-1x1x8x64", "attention", _STEP, BOTH, "bfloat16"),
    ("call-options", "options", _STEP, BOTH, "float32"),
    ("call-scores", "scores", _STEP, BOTH, "float32"),
    ("call-varlen", "varlen", (3, 2, 5, 64, 64), BOTH, "float32"),
    ("call-vmap", "vmap", (3, 1, 8, 64, 64), BOTH, "float32"),
    ("call-prepare", "prepare", _STEP, FORWARD, "float32"),
    ("call-attend", "attend", _STEP, BOTH, "float32"),
    ("call-module", "module", _STEP, BOTH, "float32"),
    ("call-module-step", "module-step", _STEP, BOTH, "float32"),
    ("call-rnn", "rnn", (2, 4, 8, 64, 64), BOTH, "float32"),
)


def jobs() -> list[Job]:
    """Return every comparison of a default run, the tiny ones first."""
    found = [
        Job(name, kind, shape, direction, dtype)
        for name, kind, shape, directions, dtype in _TINY
        for direction in directions
    ]
    suite = {case.name: case for case in cases.choose(",".join(SUITE))}
    for dtype, names in (("float32", SUITE), ("bfloat16", IN_BFLOAT16)):
        for case in map(suite.__getitem__, names):
            kind = "attend" if case.prepared else "attention"
            found += [
                Job(case.name, kind, case.shape, direction, dtype)
                for direction in BOTH
                if direction in case.directions
            ]
    return found


def choose(wanted: str | None) -> list[Job]:
    """Return the jobs of the cases named, separated by commas; "tiny" and "suite" name groups.

    Raises ValueError, which lists the known names, if a name is unknown.
    """
    everything = jobs()
    if wanted is None:
        return everything
    groups = {"tiny": {name for name, *_ in _TINY}, "suite": set(SUITE)}
    known = groups | {job.case: {job.case} for job in everything}
    names = wanted.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no case {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = set().union(*(known[name] for name in names))
    return [job for job in everything if job.case in chosen]
