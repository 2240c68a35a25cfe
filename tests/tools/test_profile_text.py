"""The profile's text: from a pipe that waits, and from standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from attnkernels.measure import files
from attnkernels.profile import command as profile
from attnkernels.profile import text


def test_says_that_it_waits_for_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.01)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Timer(0.5, lambda: pipe.write_text("to be")).start()
    assert text.read_text(str(pipe)).characters == "to be"
    assert capsys.readouterr().err == f"Waiting for the text {pipe}; Ctrl-C ends it.\n"


def test_interrupted_while_it_waits_it_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupting(path: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profile, "read_text", interrupting)
    assert profile.main([]) == 130


def from_standard_input(given: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "attnkernels.profile", "--dim", "8", "--text", "-", *arguments],
        input=given,
        capture_output=True,
        check=False,
    )


def test_a_dash_is_standard_input_and_standard_output() -> None:
    done = from_standard_input("\ufeffnaïve\r\n½".encode(), "--lengths", "7", "--json", "-")
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode()
    found = json.loads(printed[printed.index("{\n") : printed.index("\n}\n") + 3])
    assert found["text"] == {"source": "standard input", "characters": 7}
    refused = from_standard_input(b"")
    assert refused.returncode == 2 and b"the text of standard input is empty" in refused.stderr


def test_a_file_that_standard_input_reads_is_not_overwritten(tmp_path: Path) -> None:
    book = tmp_path / "book"
    book.write_text("to be or not to be")
    with book.open() as file:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "attnkernels.profile",
                "--text",
                "-",
                "--lengths",
                "8",
                "--json",
                str(book),
            ],
            stdin=file,
            capture_output=True,
            check=False,
        )
    assert done.returncode == 2 and b"is the file of --text too" in done.stderr
    assert book.read_text() == "to be or not to be"
