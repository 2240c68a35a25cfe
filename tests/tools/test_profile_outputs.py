"""The profile's files: written to what they name, refused before anything is measured."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from helpers.files import make_device
from helpers.profile import refusal

from attnkernels.profile import command as profile
from attnkernels.profile import sweep

PNG = b"\x89PNG\r\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 0.0)


def run(*arguments: str) -> int:
    return profile.main(["--dim", "8", "--backend", "reference", "--lengths", "16,24", *arguments])


@pytest.mark.parametrize("nothing", ["", "none"])
def test_no_file_is_written_where_none_is_wanted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    nothing: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--json", nothing, "--plot", nothing) == 0
    assert not list(tmp_path.iterdir())
    assert "plot:" not in capsys.readouterr().out
    assert run() == 0
    assert not list(tmp_path.iterdir())
    assert run("--json", nothing, "--plot", "p.png") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_devices_take_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    null = tmp_path / "null"
    make_device(null, 3)
    link = tmp_path / "link"
    link.symlink_to(null)
    assert run("--json", str(null), "--plot", str(link)) == 0
    printed = capsys.readouterr().out.replace("\n", "")
    assert f"json: {null}" in printed and f"plot: {link}" in printed
    assert null.is_char_device() and link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pipe_gets_the_json_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert run("--json", str(pipe), "--plot", "none") == 0
    reader.join(10)
    assert read[0].count(b'"interrupted": false') == 1 and pipe.is_fifo()


def test_a_full_device_is_a_sentence_and_the_other_file_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    make_device(full, 7)
    assert run("--json", str(full), "--plot", str(tmp_path / "p.png")) == 1
    printed = capsys.readouterr().out
    assert f"json: cannot write {full}: No space left on device" in printed
    assert (tmp_path / "p.png").read_bytes().startswith(PNG) and full.is_char_device()


def test_refuses_files_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile, "_run", None)
    book, link = tmp_path / "book.txt", tmp_path / "link.json"
    book.write_text("to be or not to be " * 10)
    link.symlink_to(book)
    png = str(tmp_path / "p.png")
    for arguments, wanted in {
        ("--plot", str(tmp_path / "p.xyz")): "p.xyz: the suffix must be one of",
        ("--plot", str(tmp_path)): "it is a folder, and must be a file",
        ("--plot", f"{tmp_path}/new/"): "is a folder; it must be a file",
        ("--json", f"{book}/p.json"): "Not a directory",
        ("--json", png, "--plot", png): "is the file of --json too",
        ("--json", str(link), "--text", str(book)): "is the file of --text too",
        ("--plot", str(book.with_name("book.txt")), "--text", str(book)): "of --text too",
    }.items():
        printed = refusal(capsys, *arguments)
        assert wanted in printed.splitlines()[-1] and "Traceback" not in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt", "link.json"]
