"""Test the runner of findings/ with small scripts that install nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tools import findings

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "findings").glob("*.sh"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder of findings: one holds, one no longer does, and one cannot be tried."""
    made = tmp_path / "findings"
    made.mkdir()
    for name, body in {
        "holding": 'echo "seen, with ${PYTHON##*/}"',
        "gone": 'echo "another answer"; exit 1',
        "untried": "exit 2",
    }.items():
        (made / f"{name}.sh").write_text(f"#!/usr/bin/env bash\n{body}\n")
    return made


def run(folder: Path, *arguments: str) -> int:
    return findings.main(["--folder", str(folder), *arguments])


def test_each_finding_gets_its_verdict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "gone: no longer holds" and said[1] == "    another answer"
    assert said[2] == "holding: holds" and said[3].startswith("    seen, with python")
    assert said[4:] == ["untried: could not be tried (exit status 2)", "1 of 3 findings hold"]


def test_named_findings_run_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "holding") == 0
    assert capsys.readouterr().out.endswith("1 of 1 findings hold\n")
    with pytest.raises(SystemExit):
        run(folder, "other")
    assert "no finding is named 'other'; there are gone, holding, unt" in capsys.readouterr().err


def test_a_finding_that_takes_too_long_is_ended(folder: Path) -> None:
    """The processes that it started end too, and its folder is removed."""
    script = folder / "endless.sh"
    script.write_text(f'mktemp -d >"{folder}/place"\nsleep 600 & echo $! >"{folder}/pid"\nwait\n')
    assert findings.run(script, timeout=1.0) == ("timed out after 1 s", "")
    place = Path((folder / "place").read_text().strip())
    assert not place.exists() and place.parent.name.startswith("finding-")
    assert not place.parent.exists()
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", (folder / "pid").read_text().strip()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert state.stdout.strip()[:1] in ("", "Z")  # gone, or dead and not yet reaped


def test_a_finding_sees_no_path_of_this_project(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = folder / "where.sh"
    script.write_text('echo "${PYTHONPATH-none} $PWD $TMPDIR"\n')
    verdict, output = findings.run(script, timeout=60.0)
    path, here, temporary = output.split()
    assert (verdict, path) == ("holds", "none")
    assert here == temporary != os.getcwd()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_have_the_form_of_a_finding(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ") and "\nset -euo pipefail\n" in text
    assert " Seen: " in text
    install = next(line for line in text.splitlines() if "install" in line and "pip" in line)
    packages = install.split("install -qq ")[1].split(" || ")[0].split()
    assert packages and all("==" in package for package in packages)
    assert "import attnkernels" not in text and "from attnkernels" not in text
    assert f"({script.name})" in (script.parent / "README.md").read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
