"""Check out and build the two trees that are compared, in build/compare."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

WORKTREE = "worktree"  # stands for the working tree, uncommitted changes and new files included
AUTHOR = {
    f"GIT_{role}_{field}": "benchmarks.compare"
    for role in ("AUTHOR", "COMMITTER")
    for field in ("NAME", "EMAIL")
}
# These would make a tree build or load something other than its own CPU library.
FOREIGN = ("ATTNKERNELS_LIBRARY", "ATTNKERNELS_SANITIZE", "PYTHONPATH", "GIT_DIR", "GIT_INDEX_FILE")


class BuildError(Exception):
    """A commit cannot be checked out or built; the message says which and why."""


class Tree(NamedTuple):
    """A commit that is built and ready to import from `path`."""

    ref: str
    commit: str
    path: Path
    dirty: bool = False  # `commit` is a snapshot of uncommitted changes

    @property
    def label(self) -> str:
        return f"{self.commit[:12]}{'-dirty' if self.dirty else ''}"


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment plus `more`, minus variables that lead to another tree."""
    return {name: value for name, value in os.environ.items() if name not in FOREIGN} | more


def make(root: Path, ref: str) -> Tree:
    """Check out and build `ref`, a commit's name or WORKTREE, of the repository at `root`.

    Raises BuildError if there is no such commit, its tree was edited, or it does not compile.
    """
    head = resolve(root, "HEAD")
    commit = snapshot(root, head) if ref == WORKTREE else resolve(root, ref)
    # All states of the working tree share one folder, so only changed files are recompiled.
    path = root / "build" / "compare" / (WORKTREE if ref == WORKTREE else commit)
    check_out(root, commit, path)
    compile_library(path, ref)
    return Tree(ref, commit, path, dirty=ref == WORKTREE and commit != head)


def resolve(root: Path, ref: str) -> str:
    """Return the full hash of the commit that `ref` names."""
    try:
        return _git(
            root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"
        )
    except BuildError:
        raise BuildError(
            f"{ref!r} names no commit of {root}; give a hash, a branch, a tag or {WORKTREE!r}"
        ) from None


def snapshot(root: Path, head: str) -> str:
    """Return a commit of the working tree as it is: `head` itself if nothing changed.

    The commit belongs to no branch, and the index stays as it was.
    """
    if not _git(root, "status", "--porcelain"):
        return head
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _git(root, "read-tree", head, extra=index)
        _git(root, "add", "--all", extra=index)
        tree = _git(root, "write-tree", extra=index)
    return _git(root, "commit-tree", tree, "-p", head, "-m", "The working tree", extra=AUTHOR)


def check_out(root: Path, commit: str, path: Path) -> None:
    """Make `path` a detached worktree of `commit`, keeping what was built there before."""
    _git(root, "worktree", "prune")
    if not (path / ".git").exists():
        _git(root, "worktree", "add", "--detach", "--quiet", str(path), commit)
        return
    changed = _git(path, "status", "--porcelain")
    if changed:
        raise BuildError(
            f"{path} was edited and no longer is {commit[:12]}; --clean removes it:\n{changed}"
        )
    if resolve(path, "HEAD") != commit:
        _git(path, "checkout", "--detach", "--quiet", commit)


def compile_library(path: Path, ref: str) -> None:
    """Build the CPU library in place; setup.py itself skips what is up to date."""
    ran = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=path,
        env=environment(ATTNKERNELS_CUDA="0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ran.returncode:
        raise BuildError(f"{ref} does not build ({path}):\n{ran.stdout.strip()}")


def clean(root: Path) -> None:
    """Remove every tree in build/compare, and git's record of it."""
    folder = root / "build" / "compare"
    for path in sorted(folder.glob("*/")):
        if (path / ".git").exists():
            _git(root, "worktree", "remove", "--force", str(path))
    shutil.rmtree(folder, ignore_errors=True)
    _git(root, "worktree", "prune")


def _git(root: Path, *arguments: str, extra: Mapping[str, str] | None = None) -> str:
    """Return the output of a git command, or raise BuildError with its message."""
    try:
        ran = subprocess.run(
            ["git", *arguments],
            cwd=root,
            env=environment(**(extra or {})),
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise BuildError(f"git does not run: {error}") from error
    if ran.returncode:
        raise BuildError(f"git {arguments[0]} failed: {ran.stderr.strip()}")
    return ran.stdout.strip()
