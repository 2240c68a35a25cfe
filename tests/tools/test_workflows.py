"""Test the files for GitHub, which run only there: schemas, a linter, and names in them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="it comes with Python 3.11")

yaml = pytest.importorskip("ruamel.yaml", reason="the package ruamel.yaml is not installed")

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
FORMS = GITHUB / "ISSUE_TEMPLATE"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
MACHINES = {"ubuntu-24.04", "ubuntu-24.04-arm", "macos-15"}  # x86-64, arm64, and arm64 of Apple
SCHEMAS = dict.fromkeys(WORKFLOWS, "github-workflows")
SCHEMAS |= dict.fromkeys(FORMS.glob("*.yml"), "github-issue-forms")
SCHEMAS |= {FORMS / "config.yml": "github-issue-config"}
SCHEMAS |= {ROOT / "CITATION.cff": "citation-file-format"}


def read(path: Path) -> Any:
    return yaml.YAML(typ="safe").load(path)


def jobs() -> list[Any]:
    """Return every job of every workflow, with a name for pytest."""
    return [
        pytest.param(job, id=f"{path.stem}-{name}")
        for path in WORKFLOWS
        for name, job in read(path)["jobs"].items()
    ]


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_follow_their_schemas(path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", f"vendor.{SCHEMAS[path]}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_schema_finds_a_fault(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on", "run-on"))
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.github-workflows", str(wrong)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_a_linter_finds_nothing() -> None:
    """It looks for permissions that are too wide, credentials left behind and injected code."""
    zizmor = shutil.which("zizmor", path=str(Path(sys.executable).parent))
    if zizmor is None:
        pytest.skip("zizmor is not installed")
    command = [zizmor, "--offline", "--no-progress", "--config", str(GITHUB / "zizmor.yml")]
    done = subprocess.run(
        [*command, str(GITHUB / "workflows")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_read_and_know_no_secret(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    assert "secrets" not in path.read_text()


@pytest.mark.parametrize("job", jobs())
def test_jobs_have_a_limit_and_name_what_exists(job: Any) -> None:
    assert 0 < job["timeout-minutes"] <= 90
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for step in job["steps"]:
        command = step.get("run", "")
        if command.startswith("make "):
            named = [word for word in command.split()[1:] if re.fullmatch(r"\w+", word)]
            assert named and set(named) <= set(targets), command
        for word in re.findall(r"\btests/\S+", command):
            assert (ROOT / word).exists(), command
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+\.\d+)?", step.get("uses", "a/b@v1"))


def test_tests_and_wheels_run_on_every_machine() -> None:
    for name in ("tests", "wheels"):
        text = (GITHUB / f"workflows/{name}.yml").read_text()
        assert set(re.findall(r"(?:ubuntu|macos)-[\w.-]+", text)) == MACHINES


def test_there_is_one_version_of_torch_and_one_wheel_per_platform() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    (torch,) = [name for name in project["build-system"]["requires"] if name.startswith("torch")]
    wheels = project["tool"]["cibuildwheel"]
    named = [(ROOT / "Makefile").read_text(), *(path.read_text() for path in WORKFLOWS)]
    named += [wheels["before-build"], wheels["linux"]["before-build"]]
    found = {name for text in named for name in re.findall(r"torch==[\d.]+", text)}
    assert found == {torch}
    python = project["project"]["requires-python"].removeprefix(">=").replace(".", "")
    assert {name.partition("-")[0] for name in wheels["build"]} == {f"cp{python}"}


def test_the_version_to_cite_is_one_of_the_changelog() -> None:
    citation = read(ROOT / "CITATION.cff")
    heading = f"## [{citation['version']}] - {citation['date-released']}"
    assert heading in (ROOT / "CHANGELOG.md").read_text().splitlines()
