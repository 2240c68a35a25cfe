"""The folders of csrc: which files may include which, and every switch handles every activation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FILES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))

# The folders that a file may include, by the start of its path. csrc/torch has one binding per
# device over headers that know no device.
MAY_INCLUDE = {
    "common": {"common"},
    "cpu": {"common", "cpu"},
    "cuda": {"common", "cuda"},
    "torch/cpu_": {"common", "cpu", "torch"},
    "torch/cuda_": {"common", "cuda", "torch"},
    "torch": {"common", "torch"},
}


def name(path: Path) -> str:
    return path.relative_to(CSRC).as_posix()


def rooms(path: Path) -> set[str]:
    """Return the folders that a file may include."""
    fitting = [start for start in MAY_INCLUDE if name(path).startswith(start)]
    assert fitting, f"{name(path)} is in no listed folder: decide where it stands"
    return MAY_INCLUDE[max(fitting, key=len)]


def included(path: Path) -> list[str]:
    """Return the project's files that a file includes, as paths below csrc."""
    found = []
    for include in re.findall(r'#include "([^"]+)"', path.read_text()):
        beside = (path.parent / include).resolve()
        below = CSRC / include
        target = beside if beside.is_file() else below
        if target.is_file():
            found.append(name(target))
    return found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_includes_only_the_rooms_below_it(path: Path) -> None:
    for other in included(path):
        assert other.split("/")[0] in rooms(path), f"{name(path)} includes {other}"
        device = re.match(r"torch/(cpu|cuda)_", other)
        own = re.match(r"torch/(cpu|cuda)_", name(path))
        assert not device or (own and own[1] == device[1]), f"{name(path)} includes {other}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_the_binding_includes_torch(path: Path) -> None:
    """csrc/cpu includes at::vec; csrc/common and csrc/cuda include nothing of torch."""
    headers = re.findall(r"#include <((?:torch|ATen|c10)/[^>]+)>", path.read_text())
    allowed = {"torch": "torch/", "cpu": "ATen/"}.get(name(path).split("/")[0])
    assert all(allowed and header.startswith(allowed) for header in headers), headers


def test_switches_over_activations_have_no_default() -> None:
    """The compiler reports a missing enumerator (-Werror=switch) only if there is no default."""
    found = 0
    for path in FILES:
        text = path.read_text()
        for match in re.finditer(r"case Activation::", text):
            switch = text.rindex("switch (", 0, match.start())
            end = text.index("\n  }\n", match.start())
            assert "default:" not in text[switch:end], name(path)
            found += 1
    assert found
