"""benchmarks.host runs without a GPU, and measures calls that repeat their launches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import host


@pytest.mark.slow
@pytest.mark.parametrize("name", host.BACKENDS)
def test_every_call_of_a_backend_is_timed(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if name == "native" and shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    if name == "triton":
        pytest.importorskip("triton", reason="the package triton is not installed")
    path = tmp_path / "host.json"
    assert host.main(["--backends", name, "--rounds", "2", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["backend"] for row in rows} == {name} and rows[0]["call"] == host.YARDSTICK
    assert len(rows) == 8 and all(0 < row["fastest_us"] <= row["median_us"] for row in rows)
    assert f"{name}: step, float32" in capfd.readouterr().out


def test_an_unknown_backend_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        host.main(["--backends", "triton,cudnn"])
    assert "--backends: no cudnn; there are triton, native" in capsys.readouterr().err
