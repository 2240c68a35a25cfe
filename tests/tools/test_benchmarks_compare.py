"""benchmarks.compare: its statistics on made-up times, its processes on this tree."""

from __future__ import annotations

import io
import json
import random
import subprocess
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.comparison import build, interleave, jobs, report, worker
from benchmarks.comparison.build import BuildError
from benchmarks.comparison.interleave import Bursts, Measured, Process, Unsupported, WorkerError
from benchmarks.comparison.jobs import Job

ROOT = Path(__file__).resolve().parents[2]
TINY = Job("tiny", "attention", (1, 1, 2, 4, 4), "both")


def bursts(ratios: list[float], spread: float, drift: float = 0.0, count: int = 8) -> list[Bursts]:
    """One pair of processes per ratio; bursts have their own noise and share a drift."""
    generator = random.Random(1)

    def noisy(ratio: float, burst: int) -> float:
        return 1e-3 * ratio * (1 + drift * burst) * (1 + spread * generator.random())

    return [
        Bursts([noisy(1, i) for i in range(count)], [noisy(ratio, i) for i in range(count)])
        for ratio in ratios
    ]


@pytest.mark.parametrize(
    "ratios, spread, drift, verdict",
    [
        ([1.1, 1.1, 1.1], 0.01, 0.0, "slower"),
        ([0.9, 0.9, 0.9], 0.01, 0.0, "faster"),
        ([1.0, 1.0, 1.0], 0.01, 0.0, "same"),
        ([1.02, 1.02, 1.02], 0.005, 0.0, "same"),  # too small to be reported
        ([1.1, 1.1, 1.1], 0.01, 0.2, "slower"),  # a machine that slows down slows both
        ([1.0, 1.0, 1.0], 0.01, 0.2, "same"),
        ([1.1, 1.1, 1.1], 2.0, 0.0, "unclear"),
        ([1.2, 1.0, 1.0], 0.01, 0.0, "unclear"),  # one pair of processes does not make a commit
        ([1.2, 0.9, 1.2], 0.01, 0.0, "unclear"),
    ],
)
def test_verdicts(ratios: list[float], spread: float, drift: float, verdict: str) -> None:
    compared = report.compare(bursts(ratios, spread, drift))
    assert compared.low <= compared.ratio <= compared.high
    assert compared.verdict == verdict


def test_only_head_failing_is_a_failure() -> None:
    fine, new, broken = (TINY._replace(case=name) for name in ("fine", "new", "broken"))
    measured = Measured(
        {fine: bursts([1.0] * 3, 0.001), new: [], broken: []},
        {new: {"base": "no such name"}, broken: {"head": "no such name"}},
    )
    rows = report.rows(measured)
    assert [row["verdict"] for row in rows] == ["same", "not compared", "fails"]
    assert report.table(measured, rows).row_count == 3


def test_every_case_is_unique_and_can_be_chosen() -> None:
    everything = jobs.choose(None)
    assert len({job.label for job in everything}) == len(everything)
    assert {job.kind for job in everything} <= set(worker.KINDS)
    assert {job.case for job in jobs.choose("suite")} == set(jobs.SUITE)
    assert jobs.choose("tiny,suite") == everything
    with pytest.raises(ValueError, match="no case huge; there are tiny, suite, "):
        jobs.choose("tiny,huge")


@pytest.mark.parametrize(
    "kind, direction", sorted({(job.kind, job.direction) for job in jobs.jobs()})
)
def test_every_kind_of_call_runs_again_and_again(kind: str, direction: str) -> None:
    call = worker.prepare(Job("case", kind, (2, 3, 4, 8, 8), direction)._asdict())
    assert type(call()) is type(call())


def test_the_protocol_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "start", lambda tree, threads: {"package": str(tree)})
    requests = [
        {"warm": 0, "calls": 1, "samples": 1},
        {"prepare": TINY._asdict()},
        {"warm": 1, "calls": 2, "samples": 3},
        {"prepare": TINY._asdict() | {"kind": "telepathy"}},
    ]
    replies = io.StringIO()
    lines = io.StringIO("".join(json.dumps(request) + "\n" for request in requests))
    worker.serve(lines, replies, ROOT, 1)
    hello, early, prepared, times, unknown = map(json.loads, replies.getvalue().splitlines())
    assert hello == {"package": str(ROOT)} and "no case is prepared" in early["error"]
    assert len(prepared["seconds"]) == 1 and len(times["seconds"]) == 3
    assert unknown == {"error": "KeyError: 'telepathy'"}


def test_two_processes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleave, "PAIRS", 1)
    unknown = TINY._replace(case="unknown", kind="telepathy")
    trees = {"base": ROOT, "head": ROOT}
    measured = interleave.measure(trees, [TINY, unknown], seconds=0.0, threads=1)
    (pair,) = measured.bursts[TINY]
    assert len(pair.base) == len(pair.head) == interleave.FEWEST
    assert set(measured.unsupported) == {unknown}
    assert set(measured.unsupported[unknown]) == {"base", "head"}


def test_a_process_must_import_its_own_tree(tmp_path: Path) -> None:
    (tmp_path / "attnkernels.py").write_text("print('hello')\n")
    with Process(tmp_path, 1) as process, pytest.raises(WorkerError, match="has no attribute"):
        process.started()
    (tmp_path / "attnkernels.py").write_text("__file__ = '/elsewhere/attnkernels.py'\n")
    with Process(tmp_path, 1) as process, pytest.raises(WorkerError, match="/elsewhere/.* not in"):
        process.started()


def test_a_process_that_ends_says_so() -> None:
    with Process(ROOT, 1) as process:
        process.started()
        with pytest.raises(Unsupported, match="KeyError"):
            process.ask(prepare={})
        process._process.kill()
        with pytest.raises(WorkerError, match="ended with status -9"):
            process.ask(warm=0, calls=1, samples=1)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit, whose setup.py builds only if `fine` says so."""
    root = tmp_path / "repository"
    root.mkdir()
    (root / ".gitignore").write_text("build/\n*.so\n")
    (root / "setup.py").write_text(
        "import pathlib, sys\n"
        "if pathlib.Path('fine').read_text() != 'yes': sys.exit('kernels.cpp:1: error: no')\n"
        "pathlib.Path('made.so').touch()\n"
    )
    (root / "fine").write_text("yes")
    for name, value in build.AUTHOR.items():
        monkeypatch.setenv(name, value)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "First"]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    monkeypatch.setattr(compare, "ROOT", root)
    return root


@pytest.mark.parametrize("first, second, status", [(1.1, 1.1, 1), (1.1, 1.0, 0), (1.0, None, 0)])
def test_a_slower_case_is_measured_again(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: float,
    second: float | None,
    status: int,
) -> None:
    """A commit against itself, with made-up times."""
    ratios = iter([first, second])

    def measure(trees: dict[str, Path], chosen: list[Job], **options: object) -> Measured:
        ratio = next(ratios)
        assert ratio is not None and trees["base"] == trees["head"]
        return Measured({job: bursts([ratio] * 3, 0.01) for job in chosen}, {})

    monkeypatch.setattr(compare, "measure", measure)
    written = repository / "build" / "figures.json"
    arguments = ["--base", "HEAD", "--head", "HEAD", "--cases", "square", "--json", str(written)]
    assert compare.main(arguments) == status
    result = json.loads(written.read_text())
    assert [row["direction"] for row in result["cases"]] == ["forward", "both"]
    assert len(result["cases"][0]["bursts"]) == (3 if second is None else 6)
    assert result["base"]["commit"] == build.resolve(repository, "HEAD")[:12]
    assert ("2 slower" in capsys.readouterr().out) == bool(status)


def worktrees(root: Path) -> list[str]:
    listed = subprocess.check_output(["git", "worktree", "list"], cwd=root, text=True)
    return listed.splitlines()[1:]


def test_an_unknown_commit_is_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--base", "nowhere"]) == 2
    assert "'nowhere' names no commit" in capsys.readouterr().err
    assert not worktrees(repository)


@pytest.mark.parametrize(
    "arguments, said",
    [([], "--base REF is needed"), (["--base", "HEAD", "--cases", "huge"], "no case huge")],
)
def test_bad_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(arguments)
    assert said in capsys.readouterr().err


def test_commits_and_the_working_tree_are_built_apart(repository: Path) -> None:
    head = build.resolve(repository, "HEAD")
    base = build.make(repository, "HEAD")
    clean = build.make(repository, build.WORKTREE)
    assert base.commit == clean.commit == head and base.path != clean.path
    assert (base.path / "made.so").exists() and not (repository / "made.so").exists()
    assert base.label == clean.label == head[:12]

    (repository / "new.txt").write_text("not yet added")
    dirty = build.make(repository, build.WORKTREE)
    assert dirty.path == clean.path and dirty.label == f"{dirty.commit[:12]}-dirty"
    assert (dirty.path / "new.txt").exists() and not (base.path / "new.txt").exists()
    status = subprocess.check_output(["git", "status", "--porcelain"], cwd=repository, text=True)
    assert status == "?? new.txt\n" and build.resolve(repository, "HEAD") == head

    (base.path / "fine").write_text("edited")
    with pytest.raises(BuildError, match="was edited and no longer is"):
        build.make(repository, "HEAD")
    assert len(worktrees(repository)) == 2 and compare.main(["--clean"]) == 0
    assert not worktrees(repository) and not (repository / "build" / "compare").exists()


def test_a_build_that_fails_shows_what_the_compiler_said(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "fine").write_text("no")
    assert compare.main(["--base", "HEAD", "--clean"]) == 2
    said = capsys.readouterr().err
    assert "worktree does not build" in said and "kernels.cpp:1: error: no" in said
    assert not worktrees(repository)
