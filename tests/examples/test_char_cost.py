"""The cost of attention in miniature: rows are measured, written, kept and not measured again."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from attnkernels.measure import device, memory
from attnkernels.profile import sweep
from attnkernels.profile.axes import time_axis
from attnkernels.profile.report import Cells
from attnkernels.profile.sweep import Row
from examples import char_cost

MIB = 2**20
WORDS, THEIR, LENGTHS = 5, 53, [5, 53, 64]  # of Python's own documentation


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure everything once and quickly, since nobody reads these figures."""
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 0.0)
    monkeypatch.setattr(memory.gc, "collect", lambda: 0)


def run(folder: Path, *arguments: str) -> int:
    return char_cost.main(["--tiny", "--dim", "8", "--out", str(folder), *arguments])


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads((folder / "results.json").read_text())["rows"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every measurement; a number at its head marks the point of Ctrl-C."""
    calls: list[int] = []

    def counting(call: Any) -> memory.Measured:
        calls.append(len(calls))
        if calls[0] == -len(calls):
            signal.raise_signal(signal.SIGINT)
        return memory.measure(call)

    monkeypatch.setattr(device, "measure", counting)
    return calls


def test_words_then_their_characters_then_more_forward_and_backward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 0
    said = capsys.readouterr().out
    assert "5 words of pydoc_data.topics have 25 scores; their 53 characters have 2,809" in said
    found = rows(tmp_path)
    assert list(found) == ["forward", "both"]
    for each in found.values():
        cells = [(row["length"], row["method"]) for row in each]
        assert cells == [(n, method) for n in LENGTHS for method in ("naive", "fused")]
        assert all(row["ms"] > 0 and row["peak_mib"] >= 0 for row in each)
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 2 + 2 * len(LENGTHS)
    assert table[2].startswith("| forward | 5 words | 25 |")
    assert table[3].startswith("| forward | their 53 characters | 2,809 |")
    assert table[-1].startswith("| both | 64 characters | 4,096 |")
    for name in ("time", "memory"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.usefixtures("ctrl_c")
def test_interrupted_it_keeps_what_is_done_and_measures_only_the_rest(
    tmp_path: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C comes at the fused operator, at the second of three lengths of the second pass."""
    measured.append(-10)
    assert run(tmp_path) == 130
    assert "--resume continues" in capsys.readouterr().out
    assert not (tmp_path / "results.json").exists()
    kept = {
        name: json.loads((tmp_path / f"rows_{name}.json").read_text())["rows"]
        for name in ("forward", "both")
    }
    assert [len(each) for each in kept.values()] == [6, 2]

    measured[:] = [0]
    assert run(tmp_path, "--resume") == 0
    assert len(measured) == 1 + 4
    found = rows(tmp_path)
    assert found["forward"] == kept["forward"] and found["both"][:2] == kept["both"]
    assert [row["length"] for row in found["both"]] == [n for n in LENGTHS for _ in range(2)]

    table = (tmp_path / "table.md").read_text()
    measured[:] = [0]
    assert run(tmp_path, "--resume") == 0  # everything is done
    assert len(measured) == 1 and (tmp_path / "table.md").read_text() == table


def test_what_does_not_fit_is_said_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run still knows how long the naive formula took."""
    monkeypatch.setattr(device, "free_memory", lambda: MIB // 4)
    assert run(tmp_path) == 0
    naive = {row["length"]: row for row in rows(tmp_path)["forward"] if row["method"] == "naive"}
    assert naive[64]["does_not_fit"] and naive[64]["ms"] is None
    kept = tmp_path / "rows_forward.json"
    content = json.loads(kept.read_text())
    content["rows"] = [row for row in content["rows"] if row["length"] != 64]
    kept.write_text(json.dumps(content))
    assert run(tmp_path, "--resume") == 0
    again = [row for row in rows(tmp_path)["forward"] if row["length"] == 64][0]
    assert again == naive[64]
    (line,) = [
        line
        for line in (tmp_path / "table.md").read_text().splitlines()
        if line.startswith("| forward | 64")
    ]
    assert "| not run, ~" in line and "0.28 MiB |" in line and line.endswith("| – | – |")


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short"
    short.write_text("one two three four five")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rows_forward.json").write_text('{"dim": 16, "rows": []}')
    for arguments, wanted in {
        ("--text", str(short)): "has 23 characters; it must have 64, and 5 words",
        ("--text", str(tmp_path / "none")): "No such file",
        ("--dim", "7"): "--dim is 7; it must be an even number",
        ("--resume",): "rows_forward.json is of {'dim': 16}, and this run is of",
    }.items():
        with pytest.raises(SystemExit) as left:
            run(tmp_path / "out", *arguments)
        assert left.value.code == 2
        assert wanted in " ".join(capsys.readouterr().err.split())


def test_the_pictures_tell_methods_by_colour_and_passes_by_line(tmp_path: Path) -> None:
    lengths = [50, 410, 65536]
    passages = char_cost.Passages(lengths, dict.fromkeys(lengths, "50 words"), {})
    cells: dict[str, Cells] = {}
    for name, factor in (("forward", 1.0), ("both", 3.0)):
        cells[name] = {(n, "fused"): Row(n, "fused", ms=factor * n**2 / 2e5) for n in lengths}
        cells[name] |= {(n, "naive"): Row(n, "naive") for n in lengths}  # never run
        cells[name][50, "naive"].ms = factor * 2
    (ax,) = char_cost.picture(passages, cells, "ms", "time", time_axis).axes
    looks = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in ax.lines}
    methods, passes = ("fused", "naive"), ("forward", "both passes")
    assert list(looks) == [f"{method}, {name}" for method in methods for name in passes]
    fused, fused_both, naive, naive_both = looks.values()
    assert fused[0] == fused_both[0] != naive[0] == naive_both[0]
    assert fused[1] == naive[1] != fused_both[1] == naive_both[1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(looks)
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert shown == ["10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "1 min"]
