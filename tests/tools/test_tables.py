"""Every command's table is whole at any width, in a terminal and in a pipe."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from attnkernels.profile import report, tables
from attnkernels.profile.sweep import Row
from benchmarks.comparison import report as compared
from benchmarks.gpu import pairs
from benchmarks.suite.table import rich_table
from examples import results

WORD = re.compile(r"[^\s─]+")
GPU = {"device": "A GPU", "ceiling": {"sms": 100, "max_mhz": 1000.0, "torch_copy_gb": 1900}}


def drawn(parts: list[RenderableType], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(*parts)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def profile() -> list[RenderableType]:
    rows = [
        Row(length, name, 4.68, 4.68, 1, 999.0, 4181.0, 12.3)
        for length in (64, 65536)
        for name in ("naive", "compile", "fused")
    ]
    rows.append(Row(10**6, "naive", estimated_ms=1e5, estimated_mib=1e7, does_not_fit=True))
    return [report.table("title", [64, 65536, 10**6], ["naive", "compile", "fused"], rows)]


def suite_rows() -> list[dict[str, Any]]:
    made = {"case": "decoder-step-prepared", "shape": [32, 1, 200, 512, 512], "dtype": "float32"}
    return [
        made | {"provider": name, "direction": direction, "median_ms": 689.0, "peak_mib": 1382.0}
        for name in ("eager", "compile", "keras", "keops", "native", "triton")
        for direction in ("forward", "both")
    ]


def suite() -> list[RenderableType]:
    return list(rich_table({"device": "cpu", "threads": 2, "ceiling": {}, "cases": suite_rows()}))


def gpu() -> list[RenderableType]:
    return list(pairs.tables(GPU | {"cases": suite_rows()}))


def compare() -> list[RenderableType]:
    from benchmarks.comparison.interleave import Bursts, Measured
    from benchmarks.comparison.jobs import choose

    job = choose("suite")[0]
    measured = Measured({job: [Bursts([0.0123] * 3, [0.0125] * 3)]}, {})
    return [compared.table(measured, compared.rows(measured))]


def example() -> list[RenderableType]:
    kinds = [f"{kind} {span}, %" for kind in ("phonemes", "words") for span in ("1-5", "10+")]
    table = results.table(["model", "search", "parameters", *kinds], [["fixed vector", "greedy"]
        + ["564,522", "9.8", "12.5", "35.4", "52.2"]], keys=2)  # fmt: skip
    return [table]


TABLES: dict[str, Callable[[], list[RenderableType]]] = {
    "profile": profile,
    "suite": suite,
    "gpu": gpu,
    "compare": compare,
    "example": example,
}


@pytest.mark.parametrize("width", [50, 80, tables.PIPE])
@pytest.mark.parametrize("made", TABLES.values(), ids=TABLES)
def test_no_width_cuts_a_heading_or_a_number(
    made: Callable[[], list[RenderableType]], width: int
) -> None:
    wide, narrow = drawn(made(), tables.UNLIMITED), drawn(made(), width)
    assert max(map(len, narrow)) <= width
    assert not any("…" in line for line in narrow)
    words = {word for line in wide for word in WORD.findall(line)}
    assert words == {word for line in narrow for word in WORD.findall(line)}


def test_every_part_names_its_rows() -> None:
    table = tables.Table("case", "pass", *(f"number {i}" for i in range(9)), keys=2, title="title")
    table.caption = "caption"
    for case in ("first", "second"):
        table.add_row(case, "forward", *["1,234 ms"] * 9)
    lines = drawn([table], 40)
    parts = [line.split()[:2] for line in lines].count(["case", "pass"])
    assert parts > 2
    assert sum("first" in line and "forward" in line for line in lines) == parts
    assert lines[0].strip() == "title" and lines[-1].strip() == "caption"
    assert sum("title" in line or "caption" in line for line in lines) == 2
    assert sum(line.count("1,234 ms") for line in lines) == 18


def test_a_cell_wider_than_the_terminal_goes_on_below() -> None:
    table = tables.Table("name", "cost")
    table.add_row("a", "not run, ~27 min, " + "9" * 30)
    found = "".join(re.sub(r"\s", "", line[6:]) for line in drawn([table], 16))
    assert found.endswith("notrun,~27min," + "9" * 30)


def test_a_pipe_is_wide_and_heeds_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert tables.console().width == tables.PIPE
    monkeypatch.setenv("COLUMNS", "50")
    assert tables.console().width == 50
