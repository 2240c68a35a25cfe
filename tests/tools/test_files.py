"""Files are written to what their paths name: nothing that is not a regular file is replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.files import make_device

from attnkernels.measure import files
from attnkernels.profile import plot, report
from attnkernels.profile.sweep import Row
from benchmarks.suite import plot as suite_plot
from benchmarks.suite import run as suite
from benchmarks.suite.absent import Absent, Attempt
from examples import training

RESULT = {
    "cpu": "a CPU",
    "threads": 1,
    "torch": "2",
    "cases": [
        {
            "case": "small",
            "direction": "both",
            "dtype": "float32",
            "provider": provider,
            "median_ms": median,
        }
        for provider, median in (("eager", 2.0), ("native", 1.0))
    ],
}


class Stateless:
    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}


def figure(path: Path) -> None:
    plot.draw(path, [Row(64, "fused", 1.0, 1.0, 1, 1.0, 1.0)], "title", 100.0)


def suite_figure(path: Path) -> None:
    assert suite_plot.draw(path, RESULT)


WRITERS: dict[str, Callable[[Path], None]] = {
    "the profile's JSON": lambda path: report.write_json(path, {}, []),
    "the profile's plot": figure,
    "the suite's JSON": lambda path: suite.write(path, RESULT),
    "the suite's plot": suite_figure,
    "what is absent": lambda path: Absent(path).note("why", Attempt("a", "b", "c", "d")),
    "a checkpoint": lambda path: training._save(path, {"part": Stateless()}, 1, 1.0),
    "a text": lambda path: files.write(path, "é"),
}
of_each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@of_each_writer
def test_a_link_is_followed(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "far").mkdir()
    target, link, chain = (tmp_path / name for name in ("far/target", "link", "chain"))
    link.symlink_to(target)
    chain.symlink_to("link")
    for _ in range(2):  # a target that is missing, and one that is there
        write(chain)
        assert link.is_symlink() and chain.is_symlink() and target.stat().st_size
        assert [path.name for path in target.parent.iterdir()] == ["target"]
        target.write_text("[]")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain", "far", "link"]


@of_each_writer
def test_a_pipe_is_written_to(tmp_path: Path, write: Callable[[Path], None]) -> None:
    if write is WRITERS["what is absent"]:
        pytest.skip("reads the file first")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write(pipe)
    reader.join(10)
    assert read and read[0] and pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@of_each_writer
def test_a_device_stays_a_device(tmp_path: Path, write: Callable[[Path], None]) -> None:
    if write is WRITERS["what is absent"]:
        pytest.skip("reads the file first")
    null = tmp_path / "null"
    make_device(null, 3)
    write(null)
    assert null.is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["null"]


def test_says_that_it_waits_for_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.01)
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Timer(0.5, lambda: read.append(pipe.read_text()))
    reader.start()
    files.write(pipe, "content")
    reader.join(10)
    assert read == ["content"]
    assert capsys.readouterr().err == f"Waiting for {pipe} to be read; Ctrl-C ends it.\n"


def test_says_nothing_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    with files.waiting("nothing"):
        pass
    time.sleep(0.4)
    assert capsys.readouterr().err == ""


def test_a_dash_is_standard_output() -> None:
    path = files.output("-")
    assert path is not None and path.samefile(f"/dev/fd/{sys.stdout.fileno()}")


def test_a_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path: Path) -> None:
    old, new, plain = (tmp_path / name for name in ("old", "new", "plain"))
    old.touch()
    old.chmod(0o640)
    plain.touch()
    for path in (old, new):
        files.write(path, "content")
        assert path.read_text() == "content"
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert new.stat().st_mode == plain.stat().st_mode


def test_a_failure_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*paths: Path) -> None:
        raise OSError("no")

    path = tmp_path / "old.json"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        files.write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_no_file_beside_it_is_overwritten(tmp_path: Path) -> None:
    other = tmp_path / "p.json.partial"
    other.write_text("mine")
    files.write(tmp_path / "p.json", "{}")
    assert other.read_text() == "mine"


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    files.write(tmp_path / ("n" * 255), "content")
    assert (tmp_path / ("n" * 255)).read_text() == "content"


def test_standard_output_in_a_file_keeps_what_was_printed(tmp_path: Path) -> None:
    """/dev/stdout leads to the regular file that a shell opened."""
    program = (
        "from pathlib import Path; from attnkernels.measure.files import write; print('one');"
        f"write(Path({str(tmp_path / 'out')!r}), 'two\\n'); print('three')"
    )
    with (tmp_path / "out").open("wb") as sink:
        subprocess.run([sys.executable, "-c", program], stdout=sink, check=True)
    assert (tmp_path / "out").read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize("text", files.NO_FILE)
def test_an_option_may_ask_for_no_file(text: str) -> None:
    assert files.output(text) is None
    files.check({"--json": None})
    files.check_figure("--plot", None)


def test_refuses_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for path, wanted in {
        tmp_path: "it is a folder, and must be a file",
        tmp_path / "file" / "x.json": "Not a directory",
        tmp_path / "loop": "[Ll]oop|Too many levels",
        tmp_path / ("n" * 300): "File name too long",
        Path("/proc/x.json"): "/proc takes no new files|Permission denied|No such file",
    }.items():
        if path.parent.name == "proc" and not path.parent.is_dir():
            continue
        with pytest.raises(ValueError, match=f"cannot write --json .*: .*({wanted})"):
            files.check({"--json": path})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_refuses_what_it_may_not_write(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.touch(0o400)
    tmp_path.chmod(0o500)
    for path in (locked, tmp_path / "new"):
        with pytest.raises(ValueError, match="Permission denied"):
            files.check({"--json": path})


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    files.check({"--json": tmp_path / "new" / "p.json", "--plot": tmp_path / "p.png"})
    assert not list(tmp_path.iterdir())


def test_refuses_one_file_for_two(tmp_path: Path) -> None:
    file, link, hard = (tmp_path / name for name in ("file", "link", "hard"))
    file.touch()
    link.symlink_to(file)
    hard.hardlink_to(file)
    new = tmp_path / "new"
    for one, two in (
        (file, file),
        (file, link),
        (hard, file),
        (new, tmp_path / "x" / ".." / "new"),
    ):
        with pytest.raises(ValueError, match="--plot .* is the file of --json too"):
            files.check({"--json": one, "--plot": two})
        with pytest.raises(ValueError, match="--json .* is the file of --text too"):
            files.check({"--json": one}, {"--text": two})


def test_one_device_may_take_two(tmp_path: Path) -> None:
    null = tmp_path / "null"
    make_device(null, 3)
    files.check({"--json": null, "--plot": null})


def test_refuses_a_format_that_matplotlib_cannot_write() -> None:
    for name in ("p.png", "p.SVG", "p.pdf", "null", ".png"):
        files.check_figure("--plot", Path(name))
    for name in ("p.xyz", "p.pgf", "p.png.txt"):
        with pytest.raises(ValueError, match=f"--plot {name}: the suffix must be one of .*png"):
            files.check_figure("--plot", Path(name))
