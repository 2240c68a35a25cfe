"""The benchmark suite in miniature: its JSON, its table, its providers and its ceiling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnkernels.testing import assert_within_budget
from benchmarks.ceiling import cpu as ceiling
from benchmarks.suite import plot, providers, run, table
from benchmarks.suite.cases import CASES, Case, choose
from benchmarks.suite.measure import interleaved

RATES = {"lanes": 16, "multiply_add_g": 100.0, "scores_g": 20.0, "gradients_g": 10.0}
HEAD = {
    "device": str,
    "cpu": str,
    "threads": int,
    "torch": str,
    "triton": (str, type(None)),
    "commit": (str, type(None)),
    "date": str,
    "ceiling": dict,
    "cases": list,
}
ROW = {
    "case": str,
    "shape": list,
    "direction": str,
    "dtype": str,
    "provider": str,
    "median_ms": float,
    "min_ms": float,
    "peak_mib": float,
}
KNOWN = {"eager", "compile", "keras", "keops", "native", "triton"}
GPU_RATES = {"sms": 100, "max_mhz": 1000.0, "torch_copy_gb": 1900, "scores": 36.0}
GPU_RATES |= {"tanh_scores": 15.9, "copy_gb": 2000}


@pytest.fixture(autouse=True)
def _known_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ceiling", lambda: dict(RATES))


def small_run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    files = ["--json", str(folder / "r.json"), "--plot", str(folder / "r.png")]
    quick = ["--cases", "tiny-2", "--providers", "eager,native", "--seconds", "0.01"]
    status = run.main([*quick, *files, *arguments])
    return status, json.loads((folder / "r.json").read_text())


def row(provider: str, ms: float, **changes: Any) -> dict[str, Any]:
    made = {"case": "square", "shape": [1, 512, 512, 256, 256], "direction": "forward"}
    made |= {"dtype": "float32", "provider": provider, "median_ms": ms, "min_ms": ms}
    return made | {"peak_mib": ms} | changes


@pytest.fixture
def result() -> dict[str, Any]:
    rows = [row("eager", 268.4), row("compile", 60.0), row("native", 2.0)]
    rows += [row("native", 8.0, direction="both", shape=[1, 512, 512, 256, 64])]
    rows += [row("native", 2.5, dtype="bfloat16")]
    head = {"device": "cpu", "cpu": "A cpu (R) 9000", "threads": 2, "torch": "2.13.0"}
    head |= {"triton": None, "commit": "abc", "date": "2030-01-02T03:04:05+00:00"}
    return head | {"ceiling": dict(RATES), "cases": rows}


@pytest.fixture
def gpu_result(result: dict[str, Any]) -> dict[str, Any]:
    square = {"case": "gpu-square", "shape": [8, 1024, 1024, 256, 256]}
    step = {"case": "gpu-step", "shape": [64, 1, 4096, 512, 512], "direction": "graph"}
    rows = [row("eager", 40.0, **square), row("triton", 10.0, **square), row("triton", 1.0, **step)]
    rows += [row("triton", 50.0, **square | {"direction": "both"})]
    return result | {"device": "A GPU", "triton": "3.6.0", "ceiling": GPU_RATES, "cases": rows}


def test_the_form_of_the_json_is_as_documented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, result = small_run(tmp_path, "--dtypes", "float32,bfloat16")
    assert status == 0
    assert list(result) == list(HEAD)
    for name, kind in HEAD.items():
        assert isinstance(result[name], kind), name
    assert result["ceiling"] == RATES
    for measured in result["cases"]:
        assert list(measured) == list(ROW)
        for name, kind in ROW.items():
            assert isinstance(measured[name], kind), name
        assert measured["case"] == "tiny-2" and measured["shape"] == [2, 3, 5, 8, 8]
        assert measured["provider"] in KNOWN
        assert 0 < measured["min_ms"] <= measured["median_ms"]
    found = {(r["dtype"], r["direction"]) for r in result["cases"]}
    assert found == {(t, d) for t in ("float32", "bfloat16") for d in ("forward", "both")}
    printed = capsys.readouterr().out
    assert "2x3x5x8" in printed and str(tmp_path / "r.json") in printed


def test_an_interrupted_run_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(calls: Any, seconds: float) -> Any:
        monkeypatch.setattr(run, "interleaved", stop)
        return interleaved(calls, seconds)

    def stop(calls: Any, seconds: float) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "interleaved", once)
    status, result = small_run(tmp_path)
    assert status == 130
    assert {measured["direction"] for measured in result["cases"]} == {"forward"}


def test_only_a_whole_run_goes_among_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]
) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    quick = ["--seconds", "0.01", "--plot", str(tmp_path / "r.png")]
    run.main([*quick, "--cases", "tiny-1", "--providers", "eager"])
    assert not (tmp_path / "results").exists()
    monkeypatch.setattr(run, "_measure", lambda *arguments: iter([result["cases"]]))
    run.main(quick)
    (written,) = (tmp_path / "results").iterdir()
    assert run.default_name(result) == "2030-01-02-cpu-a-cpu-r-9000.json"
    assert written.name == run.default_name(json.loads(written.read_text()))


def test_no_file_is_written_where_none_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "_measure", lambda *arguments: iter([result["cases"]]))
    run.main(["--seconds", "0.01", "--plot", "none", "--json", ""])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        (["--cases", "square,round"], "no case or group round; there are"),
        (["--providers", "abacus"], "no provider abacus; there are eager"),
        (["--directions", "sideways"], "no sideways; there are forward, both"),
        (["--dtypes", "float8"], "no float8; there are float32"),
        (["--plot", "p.xyz"], "p.xyz: the suffix must be one of"),
        (["--json", "/"], "/ is a folder; it must be a file"),
        (["--json", "p.png", "--plot", "./p.png"], "is the file of --json too"),
    ],
)
def test_refuses_unknown_names(
    arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run.main(arguments)
    assert error.value.code == 2 and wanted in capsys.readouterr().err


def test_cases_are_the_named_ones_and_long_ones_run_only_when_named() -> None:
    shapes = {case.name: "x".join(map(str, case.shape[:4])) for case in CASES}
    assert shapes["rnnsearch"] == "8x50x50x1000" and shapes["gnmt"] == "32x74x75x1024"
    assert shapes["decoder-step"] == "32x1x200x512" and shapes["pooling"] == "256x1x512x256"
    assert shapes["tacotron-step"] == "16x1x400x128" and shapes["pointer"] == "64x20x20x256"
    assert shapes["character"] == "1x2048x2048x256" and shapes["square"] == "1x512x512x256"
    assert len(shapes) == len(CASES)
    assert not any(case.group == "long" for case in choose(None))
    assert not any(case.group == "gpu" for case in choose(None))
    assert shapes["gpu-square"] == "8x1024x1024x256" and shapes["gpu-step"] == "64x1x4096x512"
    assert [case.name for case in choose("long")] == ["long-16k", "long-64k", "window"]
    assert [case.name for case in choose("square,long-64k")] == ["square", "long-64k"]


WINDOW = {"shape": (1, 600, 600, 8, 8), "window": 100, "providers": {"eager", "native", "triton"}}
SMALL = {"plain": {}, "prepared": {"prepared": True}, "window": WINDOW}


@pytest.mark.parametrize("provider", providers.PROVIDERS, ids=lambda provider: provider.name)
@pytest.mark.parametrize("options", SMALL.values(), ids=SMALL)
def test_every_provider_computes_the_same(
    provider: providers.Provider, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)  # it would take half a minute
    case = Case(**{"name": "any", "shape": (2, 3, 5, 8, 8), **options})
    eager = providers.PROVIDERS[0]
    for direction in ("forward", "both"):
        sentence = providers.why_not(provider, case, direction, torch.float32)
        if sentence is not None:
            pytest.skip(sentence)

        def results(
            which: providers.Provider, dtype: torch.dtype, direction: str = direction
        ) -> list[torch.Tensor]:
            found = providers.prepare(which, case, direction, dtype)()
            return [found] if isinstance(found, torch.Tensor) else list(found)

        got, reference = results(provider, torch.float32), results(eager, torch.float32)
        assert len(got) == (1 if direction == "forward" else 4)
        exact = results(eager, torch.float64)
        if provider.by_request:  # an approximation
            rounded = results(eager, torch.bfloat16)
            for mine, theirs, right in zip(got, rounded, exact, strict=True):
                assert (mine - right).norm() <= (theirs - right).norm()
            continue
        for mine, theirs, right in zip(got, reference, exact, strict=True):
            assert_within_budget(mine, theirs, right)


def test_a_case_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    square = next(case for case in CASES if case.name == "square")
    has = {"free_memory": lambda: 2**30}
    monkeypatch.setattr(providers, "meter", lambda device: SimpleNamespace(**has))
    eager, compiled = providers.PROVIDERS[:2]
    assert providers.why_not(eager, square, "both", torch.float32) is None
    has["free_memory"] = lambda: 2**29
    assert "needs 512 MiB" in (providers.why_not(eager, square, "forward", torch.float32) or "")
    assert providers.why_not(compiled, square, "forward", torch.float32) is None


def test_interleaved_calls_everyone_equally() -> None:
    seen: list[str] = []
    calls = {name: lambda name=name: seen.append(name) for name in ("a", "b")}
    timings = interleaved(calls, 0.05)
    assert set(timings) == {"a", "b"} and interleaved({}, 1.0) == {}
    assert all(t.min_ms <= t.median_ms for t in timings.values())


def test_the_table_shows_factors_memory_and_ceiling(result: dict[str, Any]) -> None:
    forward, both = table.lines(result, "float32")
    assert (forward.shape, both.shape) == ("1x512x512x256", "1x512x512x256 dv 64")
    assert forward.times == {"eager": "268 ms", "compile": "60 ms", "native": "2 ms"}
    assert (forward.than_eager, forward.than_compile) == ("134x", "30x")
    assert forward.memory == "268 MiB / 2 MiB" and both.memory == "– / 8 MiB"
    # 67.1e6 elements: 3.36 ms on one core at 20 G/s, half of it on two
    assert forward.rates == {"of ceiling": "84%"}
    # two passes of scores and one of gradients: 13.4 ms on one core
    assert both.rates == {"of ceiling": "84%"}
    text = table.markdown(result)
    assert text.index("float32:") < text.index("bfloat16:")
    head = next(line for line in text.splitlines() if line.startswith("| case"))
    assert all(line.count("|") == head.count("|") for line in text.splitlines() if "|" in line)


def test_the_table_of_a_gpu_shows_rates_and_bandwidth(gpu_result: dict[str, Any]) -> None:
    forward, step, both = (
        line
        for name in ("forward", "graph", "both")
        for line in table.lines(gpu_result, "float32")
        if line.direction == name
    )
    assert forward.times == {"eager": "40 ms", "triton": "10 ms"}
    assert (forward.than_eager, forward.memory) == ("4.0x", "40 MiB / 10 MiB")
    # 2.147e9 elements in 10e6 clocks of 100 processors
    wanted = {"elements/clk/SM": "2.15", "of ceiling": "6%", "of copy": "–"}
    assert forward.rates == wanted
    # 64 x 4096 x 1024 floats and little more: 1074 of 2000 GB/s; a replay takes no memory
    assert step.rates["of copy"] == "54%" and step.memory == "– / –"
    assert both.rates == wanted | {"elements/clk/SM": "0.43", "of ceiling": "–"}
    text = table.markdown(gpu_result)
    assert "**triton**" in text and "36.0 elements/clk/SM forward" in text
    assert "A GPU, Triton 3.6.0" in text and "2000 GB/s" in text
    bare = table.lines(gpu_result | {"ceiling": {}}, "float32")
    assert all(set(line.rates.values()) == {"–"} for line in bare)
    assert run.default_name(gpu_result) == "2030-01-02-a-gpu.json"


def test_the_readme_follows_the_newest_results(
    tmp_path: Path,
    result: dict[str, Any],
    gpu_result: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = tmp_path / "README.md"
    where = ["--readme", str(readme), "--results", str(tmp_path)]
    (begin, end), (gpu_begin, gpu_end) = table.MARKERS["cpu"], table.MARKERS["gpu"]
    readme.write_text(f"above\n{begin}\n{end}\nbetween\n{gpu_begin}\n{gpu_end}\nbelow\n")
    assert table.main(where) == 0
    assert readme.read_text().count("Not measured yet: ") == 2

    run.write(tmp_path / "new.json", result)
    run.write(tmp_path / "old.json", result | {"date": "2029-01-02T03:04:05", "cpu": "older"})
    assert table.main([*where, "--check"]) == 1 and "A cpu" not in readme.read_text()
    assert table.main(where) == 0 and table.main([*where, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n")
    assert "A cpu (R) 9000" in text and "older" not in text
    assert text.count("Not measured yet: ") == 1
    assert table.main(where) == 0 and readme.read_text() == text

    run.write(tmp_path / "gpu.json", gpu_result)
    assert table.main(where) == 0
    by_cpu, by_gpu = readme.read_text().split("\nbetween\n")
    assert "A cpu (R) 9000" in by_cpu and "A GPU" not in by_cpu
    assert "A GPU" in by_gpu and "A cpu" not in by_gpu

    readme.write_text(f"{begin}\n{end}")
    with pytest.raises(SystemExit):
        table.main(where)
    assert f"needs the lines {gpu_begin}" in capsys.readouterr().err


def test_the_plot_needs_something_to_compare(tmp_path: Path, result: dict[str, Any]) -> None:
    assert plot.draw(tmp_path / "some.png", result)
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
    assert not plot.draw(tmp_path / "none.png", result | {"cases": [row("native", 1.0)]})
    assert not (tmp_path / "none.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ceiling.COMPILERS)), reason="there is no C++ compiler"
)
def test_the_ceiling_computes_what_it_claims_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rates = ceiling.ceiling()
    assert set(RATES) <= set(rates)
    assert all(rates[name] > 0 for name in RATES)
    assert rates["scores_error"] < 1e-5 and rates["gradients_error"] < 1e-5
    assert len(list((tmp_path / "attnkernels").iterdir())) == 1


def test_without_a_compiler_there_is_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert ceiling.ceiling() == {} and ceiling.seconds({}, 1e9, "forward", 2) is None
