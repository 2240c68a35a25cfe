"""The profile in miniature: measurements, files, refusals and interruption."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.profile import MIB, refusal, run

from attnkernels.measure import device, machine, memory
from attnkernels.profile import command as profile
from attnkernels.profile import plot, report, sweep, text, units
from attnkernels.profile.naive import naive_attention, naive_bytes
from attnkernels.profile.sweep import Row
from attnkernels.testing import assert_within_budget

PNG = b"\x89PNG\r\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 0.0)


@pytest.mark.parametrize("flags, direction", [((), "forward"), (("--backward",), "both")])
def test_measures_every_length_by_every_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], direction: str
) -> None:
    status, result = run(tmp_path, "--lengths", "16,48,33", *flags)
    assert status == 0
    measured = [(row["length"], row["method"]) for row in result["rows"]]
    assert measured == [(n, method) for n in (16, 33, 48) for method in ("naive", "fused")]
    for row in result["rows"]:
        assert row["ms"] > 0 and row["repeats"] == 1 and row["skipped"] is None
        expected = row["length"] ** 2 * 8 / row["ms"] / 1e6
        assert row["g_elements_per_s"] == pytest.approx(expected)
    assert result["direction"] == direction and result["seed"] == 0 and not result["interrupted"]
    assert result["text"]["source"] == "pydoc_data.topics"
    assert set(result["versions"]) == {"python", "torch", "attnkernels"}
    assert {"device", "cpu", "threads", "dim", "dtype", "backend", "date"} <= set(result)
    assert (tmp_path / "out" / "p.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p.json", "p.png"]
    printed = capsys.readouterr().out
    assert "48 characters to 48" in printed and "faster" in printed
    assert str(tmp_path / "out" / "p.png") in printed


def test_compile_is_a_third_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: asked.append(options) or f)
    _, result = run(tmp_path, "--lengths", "16,32", "--compile")
    assert [row["method"] for row in result["rows"]] == ["naive", "compile", "fused"] * 2
    assert asked == [{"dynamic": False}] * 2


@pytest.mark.parametrize("flags", [(), ("--backward",)], ids=str)
def test_a_window_is_measured_beside_all_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    _, result = run(tmp_path, "--lengths", "16,48", "--window", "5", *flags)
    assert [row["method"] for row in result["rows"]] == ["naive", "fused", "window"] * 2
    windowed = [row for row in result["rows"] if row["method"] == "window"]
    for row in windowed:
        n = row["length"]
        pairs = sum(abs(i - j) <= 5 for i in range(n) for j in range(n))
        assert row["g_elements_per_s"] == pytest.approx(pairs * 8 / row["ms"] / 1e6)
    assert result["window"] == 5
    printed = " ".join(capsys.readouterr().out.split())
    assert "In a window of 5 to both sides, 48 characters took" in printed
    assert ", window 5" in printed and "than all pairs" in printed


def test_a_window_takes_time_by_its_pairs() -> None:
    options = {"backend": "native", "naive_seconds": 1.0, "fused_seconds": 1.0, "window": 7}
    _, whole, windowed = sweep.methods(8, False, False, **options)
    for method, growth in ((whole, 16), (windowed, sweep.window_pairs(400, 7) / 1444)):
        method.last, row = Row(100, method.name, ms=3.0, peak_mib=1.0), Row(400, method.name)
        method.estimate(row)
        assert row.estimated_ms == pytest.approx(3.0 * growth)
    assert sweep.window_pairs(100, 7) == 1444 and sweep.window_pairs(4, 7) == 16


def test_says_what_does_not_fit_instead_of_dying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "free_memory", lambda: MIB // 4)
    _, result = run(tmp_path, "--lengths", "16,256")
    small, large = (row for row in result["rows"] if row["method"] == "naive")
    assert small["skipped"] is None
    assert large["ms"] is None and large["does_not_fit"]
    assert large["skipped"] == "needs 4.5 MiB, does not fit"
    assert large["estimated_mib"] == naive_bytes(256 * 256, 8, 4, False) / MIB
    assert large["estimated_ms"] == pytest.approx(small["ms"] * 256)
    assert "!4.5 MiB" in capsys.readouterr().out


def test_says_what_takes_too_long(tmp_path: Path) -> None:
    _, result = run(tmp_path, "--lengths", "16,32", "--naive-seconds", "0")
    naive = [row for row in result["rows"] if row["method"] == "naive"]
    assert naive[0]["ms"] > 0  # there is no estimate before the first
    assert naive[1]["skipped"].startswith("would take about")
    assert all(row["ms"] > 0 for row in result["rows"] if row["method"] == "fused")


def ask_for_too_much() -> None:
    torch.empty(2**50)


def run_out_as_a_gpu_does() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def run_out_as_a_kernel_does() -> None:
    raise MemoryError


@pytest.mark.parametrize("ask", [ask_for_too_much, run_out_as_a_gpu_does, run_out_as_a_kernel_does])
def test_survives_an_allocation_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Any
) -> None:
    def fail(*tensors: torch.Tensor) -> torch.Tensor:
        if tensors[0].shape[1] > 32:
            ask()
        return naive_attention(*tensors)

    monkeypatch.setattr(sweep, "naive_attention", fail)
    status, result = run(tmp_path, "--lengths", "16,64")
    assert status == 0
    assert [row["skipped"] for row in result["rows"]] == [None, None, "ran out of memory", None]


def test_interrupted_it_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [True] * 3

    def interrupting(call: Any) -> memory.Measured:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return memory.measure(call)

    monkeypatch.setattr(device, "measure", interrupting)
    status, result = run(tmp_path, "--lengths", "16,32,48")
    assert status == 130 and result["interrupted"]
    assert [(row["length"], row["method"]) for row in result["rows"]] == [
        (16, "naive"),
        (16, "fused"),
        (32, "naive"),
    ]
    assert (tmp_path / "out" / "p.png").read_bytes().startswith(PNG)
    assert "Interrupted" in capsys.readouterr().out


def test_interrupted_before_anything_it_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupting(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profile, "encode", interrupting)
    files = ["--json", str(tmp_path / "p.json"), "--plot", str(tmp_path / "p.png")]
    assert profile.main(["--lengths", "16", "--dim", "8", *files]) == 130
    assert not list(tmp_path.iterdir())


def test_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, latin, empty = tmp_path / "short", tmp_path / "latin", tmp_path / "empty"
    single = tmp_path / "single"
    single.write_text("a")
    short.write_text("a few characters")
    latin.write_bytes(b"caf\xe9 au lait")
    empty.write_text("")
    for arguments, wanted in {
        ("--text", str(tmp_path / "none")): "No such file",
        ("--text", str(tmp_path)): "cannot read the text",
        ("--text", str(latin)): "not UTF-8: byte 0xe9 at position 3",
        ("--text", str(empty)): "is empty",
        ("--text", str(short)): "has 16 characters, at least 64 wanted; give shorter lengths, as in"
        " --lengths 16",
        ("--text", str(single)): "has 1 character, at least 64 wanted",
        ("--text", str(short), "--lengths", "8,17"): "has 16 characters, --lengths wants 17",
        ("--lengths", "64,x"): "'64,x' is not a list such as",
        ("--lengths", "0,64"): "a length must be at least 1, got 0",
        ("--dim", "7"): "--dim must be an even number",
        ("--seed", str(10**23)): "--seed: a seed must be from -2^63 to 2^64 - 1, got 1000",
        ("--seed", str(-(2**63) - 1)): "--seed: a seed must be from",
        ("--seed", "1e23"): "--seed: '1e23' is not a whole number",
        ("--naive-seconds", "nan"): "--naive-seconds: a number of seconds, 0 or more, is wanted",
        ("--naive-seconds", "-1"): "0 or more, is wanted, got '-1'",
        ("--naive-seconds", "soon"): "0 or more, is wanted, got 'soon'",
        ("--backend", "abacus"): "'abacus'",
    }.items():
        assert wanted in refusal(capsys, *arguments)


def test_one_character_is_singular(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    status, _ = run(tmp_path, "--lengths", "1")
    printed = capsys.readouterr().out
    assert status == 0 and "attended 1 character to 1 (" in printed and "1 thread," in printed


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_takes_every_seed_that_torch_takes(tmp_path: Path, seed: int) -> None:
    _, result = run(tmp_path, "--lengths", "16", f"--seed={seed}")
    assert result["seed"] == seed


def test_a_limit_may_be_infinite(tmp_path: Path) -> None:
    _, result = run(tmp_path, "--lengths", "16,32", "--naive-seconds", "inf")
    assert all(row["skipped"] is None for row in result["rows"])


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("naïve ½ 注意", encoding="utf-8")
    status, result = run(tmp_path, "--text", str(file), "--lengths", "10")
    assert status == 0 and result["text"] == {"source": str(file), "characters": 10}


def test_a_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("naïve", encoding="utf-8-sig")
    assert text.read_text(str(file)).characters == "naïve"
    file.write_text("", encoding="utf-8-sig")
    with pytest.raises(ValueError, match="is empty"):
        text.read_text(str(file))


@pytest.mark.parametrize("name", ["[/red]", "$\\nothing$", "注意", os.fsdecode(b"caf\xe9")])
def test_any_file_name_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would be broken over two lines of the title
    file = Path(name)
    file.parent.mkdir(exist_ok=True)
    file.write_text("to be or not to be")
    (tmp_path / "out").mkdir()
    status, result = run(tmp_path, "--text", str(file), "--lengths", "16")
    assert status == 0 and result["text"]["source"] == str(file)
    assert not file.name.isprintable() or name in capsys.readouterr().out.replace("\n", "")
    files = ["--plot", "none", "--json", f"{file}.json"]
    assert profile.main(["--lengths", "8", "--dim", "8", *files]) == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_any_encoding_of_the_terminal_is_enough(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "注意"
    file.write_text("to be or not to be")
    files = ["--json", str(tmp_path / "p.json"), "--plot", "none", "--text", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "attnkernels.profile", "--lengths", "1,16", "--dim", "8", *files],
        env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode(encoding)
    assert (" us" if encoding == "ascii" else " µs") in printed


def test_the_default_text_is_long_enough_for_the_default_lengths() -> None:
    found = text.read_text()
    assert len(found.characters) >= profile.LENGTHS[-1]
    assert found == text.read_text()


def test_encoding_follows_its_seed_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (text.encode("to be or not to be", 8, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [tuple(tensor.shape) for tensor in first] == [(1, 18, 8)] * 3 + [(8,)]
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c) and not a.requires_grad
    with pytest.raises(ValueError, match="dim must be even"):
        text.encode("text", 7, 0)


def test_the_naive_formula_is_the_formula() -> None:
    given = [torch.randn(2, 5, 6), torch.randn(2, 7, 6), torch.randn(2, 7, 3), torch.randn(6)]
    from attnkernels import additive_attention

    exact = additive_attention(*(x.double() for x in given), backend="reference")
    reference = additive_attention(*given, backend="reference")
    assert_within_budget(naive_attention(*given), reference, exact)


@pytest.mark.parametrize("backward", [False, True])
def test_events_of_the_allocator_give_what_the_naive_formula_is_said_to_need(
    backward: bool,
) -> None:
    given = text.Attended(*(torch.randn(1, 384, 64) for _ in range(3)), torch.randn(64))
    call = sweep.call_of(naive_attention, given, backward)
    call()
    needed = naive_bytes(384 * 384, 64, 4, backward)
    assert memory._profiled(call).peak_bytes == pytest.approx(needed, rel=0.1)


def test_peak_memory_sees_what_is_freed_before_the_end_and_not_what_was_there() -> None:
    def call() -> torch.Tensor:
        torch.ones(32 * MIB // 4)
        return torch.ones(MIB // 4)

    kept = torch.ones(16 * MIB // 4)
    call()
    assert memory.measure(call).peak_bytes == pytest.approx(32 * MIB, rel=0.05)
    assert memory.measure(lambda: kept.sum()).peak_bytes < MIB


def test_free_memory_heeds_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = machine.free_memory()
    assert outside > 0
    (tmp_path / "memory.max").write_text(f"{3 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{MIB}\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.free_memory() == 2 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory() > 2 * MIB


def test_units() -> None:
    assert [units.show_ms(ms) for ms in (0.0312, 4.204, 1250, 110e3, 180e3, 1e7)] == [
        "31.2 µs",
        "4.2 ms",
        "1.25 s",
        "110 s",
        "3 min",
        "2.8 h",
    ]
    assert [units.show_mib(mib) for mib in (0.254, 31.04, 4300, 1.3e6)] == [
        "0.25 MiB",
        "31 MiB",
        "4.2 GiB",
        "1.24 TiB",
    ]
    rates = [units.show_rate(rate) for rate in (0.0123, 0.238, 13.06, 4181.3)]
    assert rates == ["0.012", "0.24", "13.1", "4,181"]
    assert [units.show_ratio(x) for x in (0.824, 5.32, 61.2, 1234)] == [
        "0.82x",
        "5.3x",
        "61x",
        "1,234x",
    ]


def test_a_plot_needs_no_more_than_one_row(tmp_path: Path) -> None:
    plot.draw(tmp_path / "one.svg", [Row(64, "fused", 1.0, 1.0, 1, 1.0, 1.0)], "title", 100.0)
    assert "<svg" in (tmp_path / "one.svg").read_text()
    assert report.sentence([], 8, False) == "Nothing was measured."
