"""benchmarks.predict: what the host launches for each case, and what a launch is taken to cost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import predict
from benchmarks.gpu import predicted
from benchmarks.suite import cases
from tools.sass import native

RNNSEARCH = cases.choose("rnnsearch")[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_small_cases_fill_the_device(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "predicted.json"
    names = "rnnsearch,gnmt,pointer,square,square-128,decoder-step-prepared,gpu-square"
    assert predict.main(["--cases", names, "--json", str(path)]) == 0
    rows = {row["case"]: row for row in json.loads(path.read_text())["rows"]}
    assert "decoder-step-prepared, backward" not in rows and len(rows) == 13
    for name in ("rnnsearch", "gnmt", "pointer", "square"):
        for direction in ("forward", "backward"):
            row = rows[f"{name}, {direction}"]
            assert row["fill"] == 1 and row["seconds"] < row["whole_seconds"]
    for direction in ("forward", "backward"):
        row = rows[f"rnnsearch, {direction}"]
        assert row["seconds"] < row["whole_seconds"] / 5
    assert all(row["launches"] <= 5 for row in rows.values())
    assert all(row["seconds"] <= row["whole_seconds"] for row in rows.values())
    assert rows["gpu-square, forward"]["seconds"] == rows["gpu-square, forward"]["whole_seconds"]
    assert "rnnsearch, forward" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_sines_take_no_longer() -> None:
    """But for steps and the gradients of small problems, which are exact."""
    chosen = cases.choose("rnnsearch,gnmt,gpu-square,decoder-step-prepared")
    exact, fast = (predict.timed(chosen, "bfloat16", each) for each in ("exact", "fast"))
    assert all(sum(fast[title][1]) <= sum(exact[title][1]) for title in exact)
    of = {title: sum(fast[title][1]) / sum(exact[title][1]) for title in exact}
    assert of["decoder-step-prepared, forward"] == 1
    assert max(of["gpu-square, forward"], of["gpu-square, backward"], of["gnmt, forward"]) < 0.9


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_what_was_written_is_what_is_predicted_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of the kernels: python -m benchmarks.predict --update."""
    written = json.loads(predicted.FILE.read_text(encoding="utf-8"))
    monkeypatch.setattr(predicted, "FILE", tmp_path / "predicted.json")
    assert predict.main(["--update"]) == 0
    assert json.loads(predicted.FILE.read_text(encoding="utf-8")) == written


def test_a_summary_has_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "predicted.json"
    file.write_text(json.dumps({"float32": {"rnnsearch": {"forward": 20.0}}}))
    monkeypatch.setattr(predicted, "FILE", file)

    def row(provider: str = "native", direction: str = "forward") -> dict[str, Any]:
        given = {"case": "rnnsearch", "dtype": "float32", "median_ms": 0.03}
        return given | {"provider": provider, "direction": direction}

    result: Any = {"cases": [row(), row("triton"), row(direction="both")]}
    assert predicted.beside(result).splitlines()[1:] == [
        "  rnnsearch forward float32: 30 µs where 20 were predicted, 1.50x"
    ]
    assert predicted.beside({"cases": [row("triton")]}) == ""


def test_every_kernel_of_a_call_has_a_cost() -> None:
    """The names of launches, but for those of tangents, graphs, and outputs that cases lack."""
    launched = {
        name
        for source in native.SOURCES.glob("*.cu")
        if not source.name.startswith(("edge", "jvp"))
        for name in re.findall(r'launch\(\s*"(\w+)"', source.read_text(encoding="utf-8"))
    }
    assert launched - {"weights", "scores", "sum"} == set(predict.COSTS) - {"clear"}


def test_a_launch_takes_what_its_busiest_processor_takes() -> None:
    def seconds(blocks: int) -> float:
        made = [("forward", blocks, 128, 0)]
        of = predict.size(RNNSEARCH, "forward", made, 4)
        return predict.seconds(made[0], of) - predict.LAUNCH

    assert seconds(8) == pytest.approx(seconds(4) / 2)  # as much work in all
    # two blocks on a processor that had one: each half as long, and more warps to choose from
    assert seconds(2 * predict.PROCESSORS) < seconds(predict.PROCESSORS)
    assert seconds(predict.PROCESSORS + 1) > seconds(predict.PROCESSORS)


def test_an_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict.main(["--cases", "rnnsearch,elmo"])
    assert "--cases: no case or group elmo" in capsys.readouterr().err
