"""Small runs of `python -m attnkernels.profile`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnkernels.profile import command as profile

MIB = 2**20


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """A small run; its exit status and its JSON."""
    output = ["--json", str(folder / "out" / "p.json"), "--plot", str(folder / "out" / "p.png")]
    status = profile.main(["--dim", "8", "--backend", "reference", *output, *arguments])
    return status, json.loads((folder / "out" / "p.json").read_text())


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        profile.main(list(arguments))
    assert error.value.code == 2
    return capsys.readouterr().err
